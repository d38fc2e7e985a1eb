"""What a malformed request and its refusal are, and bodies that are no JSON object, for whichever dialect."""

from collections.abc import Mapping
from dataclasses import dataclass, field

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
USER = '{"role": "user", "content": "hi"}'


@dataclass(frozen=True, slots=True)
class Case:
    """A request and its refusal. `param` stands in the message too; so does `says`."""

    content: bytes
    param: str | None
    says: str = ""
    status: int = 400
    code: str = "invalid_request"
    method: str = "POST"
    path: str = CHAT
    headers: Mapping[str, str | bytes] = field(default_factory=dict)


# Bodies that are no JSON object; sent to both dialects.
NO_OBJECTS: dict[str, bytes] = {
    "nothing": b"",
    "white space": b" \n\t ",
    "NUL": b"\0",
    "an open object": b"{",
    "half a body": b'{"model": "script", "messages": [{"role": "us',
    "a list": b"[]",
    "null": b"null",
    "a number": b"5",
    "a text": b'"hi"',
    "words": b"hello there",
    "a form": b"model=script&messages=hi",
    "single quotes": b"{'model': 'script'}",
    "a bare key": b'{model: "script"}',
    "a trailing comma": b'{"model": "script",}',
    "a comment": b'{"model": "script" /* mine */}',
    "two documents": b'{"model": "script"} {"model": "script"}',
    "UTF-16 without a mark": '{"model": "script"}'.encode("utf-16-le"),
    "a byte order mark in its midst": b'{\xef\xbb\xbf"model": "script"}',
    "Latin-1": '{"user": "café"}'.encode("latin-1"),
    "invalid UTF-8": b'{"user": "\xff\xfe"}',
    "an overlong encoding": b'{"user": "\xc0\xaf"}',
    "an encoded surrogate": b'{"user": "\xed\xa0\x80"}',
    "a lone surrogate": b'{"user": "\\ud800"}',
    "a lone low surrogate": b'{"user": "\\udc00x"}',
    "half an escape": b'{"user": "\\u12"}',
    "a raw line end": b'{"user": "a\nb"}',
    "a raw NUL": b'{"user": "a\0b"}',
    "NaN": b'{"temperature": NaN}',
    "Infinity": b'{"temperature": Infinity}',
    "minus Infinity": b'{"temperature": -Infinity}',
    "a leading zero": b'{"max_tokens": 007}',
    "a plus sign": b'{"max_tokens": +7}',
    "hexadecimal": b'{"max_tokens": 0x10}',
    "5,000 digits": b'{"max_tokens": ' + b"9" * 5000 + b"}",
    "10,000 lists": b"[" * 10_000,
    "10,000 objects": b'{"a":' * 10_000,
    "10,000 whole lists": b'{"messages": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "gzip": b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
    "XML": b"<?xml version='1.0'?><messages/>",
}

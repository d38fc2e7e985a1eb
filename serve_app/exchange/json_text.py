"""JSON from strangers. It is counted before it is parsed, because the parser holds Python's lock until it is done.

Ten million empty strings are 30 MB, and seconds in which the process can't answer. Knows nothing of fields.
"""

import re
from collections.abc import Iterator
from typing import Any

import jiter

from serve_app.errors import InvalidRequest

MAX_VALUES = 1_000_000  # all that stand behind a comma
MAX_CONTAINERS = 100_000  # lists and objects, which cost ten times as much as numbers
MAX_KEYS = 100_000

_BOUNDS = ((MAX_VALUES, "values"), (MAX_CONTAINERS, "lists and objects"), (MAX_KEYS, "keys"))
_UTF8_MARK = b"\xef\xbb\xbf"
_OTHER_MARKS = (b"\xff\xfe", b"\xfe\xff")
_TWICE = re.compile(r'duplicate key "(.*)" at line', re.DOTALL)
_LONGEST_KEY = 100  # characters that are shown of one
_SLICE_BYTES = 262_144


def parse(data: bytes, field: str | None = None) -> Any:
    """The document's values. Raises `InvalidRequest` where it isn't valid JSON, or is too much of it.

    `field` is the field that holds the document, if that isn't the whole body. A byte order mark is skipped. A
    repeated key is refused: another reader, such as a proxy that looks for the model's name, may take the other
    value. NaN, the infinities and invalid UTF-8 aren't JSON.
    """
    data = data.removeprefix(_UTF8_MARK)
    name = f"{field}: it" if field else "the body"
    if data.startswith(_OTHER_MARKS):
        raise InvalidRequest(f"{name} is UTF-16 or UTF-32: send it in UTF-8", field)
    if exceeded := _exceeded_bound(data):
        raise InvalidRequest(f"{name} has more than {exceeded}: send less, or several requests", field)
    try:
        return jiter.from_json(data, allow_inf_nan=False, catch_duplicate_keys=True)
    except ValueError as exc:
        if twice := _TWICE.search(str(exc)):
            key = twice[1] if len(twice[1]) <= _LONGEST_KEY else f"{twice[1][:_LONGEST_KEY]}…"
            raise InvalidRequest(
                f"{name} has the key '{key}' twice in one object: send it once", field or key
            ) from exc
        raise InvalidRequest(f"{name} isn't valid JSON: {exc}", field) from exc


def _exceeded_bound(data: bytes) -> str | None:
    """What the document has too much of. Strings don't count, and are skipped only if that could matter."""
    if not _exceeded(_counts(data)):
        return None
    num_values = num_containers = num_keys = 0
    for outside in _outside_strings(data):
        values, containers, keys = _counts(outside)
        num_values, num_containers, num_keys = num_values + values, num_containers + containers, num_keys + keys
        if exceeded := _exceeded((num_values, num_containers, num_keys)):
            return exceeded
    return None


def _counts(text: bytes) -> tuple[int, int, int]:
    return text.count(b","), text.count(b"[") + text.count(b"{"), text.count(b":")


def _exceeded(counts: tuple[int, int, int]) -> str | None:
    return next((f"{most:,} {what}" for n, (most, what) in zip(counts, _BOUNDS, strict=True) if n > most), None)


def _outside_strings(data: bytes) -> Iterator[bytes]:
    """The bytes outside of strings, slice by slice, so that no step holds Python's lock for long."""
    is_inside, begin = False, 0
    while begin < len(data):
        end = begin + _SLICE_BYTES
        piece = data[begin:end]
        if _num_last_backslashes(piece) % 2:  # what it escapes belongs to it
            piece += data[end : end + 1]
        begin += len(piece)
        between = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        yield b"".join(between[1 if is_inside else 0 :: 2])
        is_inside ^= len(between) % 2 == 0


def _num_last_backslashes(piece: bytes) -> int:
    return len(piece) - len(piece.rstrip(b"\\"))

"""Server-sent events from bytes, after the WHATWG HTML standard (section 9.2.6).

Only the `data` field is kept. Lines end with CR LF, LF or CR and nothing else: text split at other
characters (U+2028, form feed) would tear the JSON inside an event.
"""

import re
from collections.abc import Iterable, Iterator

_LINE_END = re.compile(rb"\r\n|\n|\r")


def events(pieces: Iterable[bytes]) -> Iterator[str]:
    """The data of each complete event in a stream that arrives in any pieces. An unfinished one is dropped."""
    data: list[str] = []
    for line in _lines(pieces):
        if not line:
            if data:
                yield "\n".join(data)
            data = []
        else:
            field, _, value = line.partition(":")
            if field == "data":
                data.append(value.removeprefix(" "))


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    rest, is_first = b"", True
    for piece in pieces:
        rest += piece
        start = 0
        while end := _LINE_END.search(rest, start):
            if end.group() == b"\r" and end.end() == len(rest):
                break  # its LF may be in the next piece
            line = rest[start : end.start()].decode("utf-8", "replace")
            yield line.removeprefix("\ufeff") if is_first else line
            start, is_first = end.end(), False
        rest = rest[start:]
    if rest.endswith(b"\r"):
        yield rest[:-1].decode("utf-8", "replace")

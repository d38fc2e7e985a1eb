"""Server-sent events from bytes, after the WHATWG HTML standard (section 9.2.6).

Only the `data` field is kept. Lines end with CR LF, LF or CR and nothing else: text split at other
characters (U+2028, form feed) would tear the JSON inside an event.
"""

import re
from collections.abc import Iterable, Iterator

_LINE_END = re.compile(rb"\r\n|\n|\r")


def events(pieces: Iterable[bytes]) -> Iterator[str]:
    """The data of each complete event in a stream that arrives in any pieces. An unfinished one is dropped."""
    reader = EventReader()
    for piece in pieces:
        yield from reader.feed(piece)
    yield from reader.end()


class EventReader:
    """The same for pieces that are fed to it one after another, as they come."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []
        self._is_first_line = True

    def feed(self, piece: bytes) -> Iterator[str]:
        """The data of each event that is complete with this piece."""
        rest, start = self._rest + piece, 0
        while end := _LINE_END.search(rest, start):
            if end.group() == b"\r" and end.end() == len(rest):
                break  # its LF may be in the next piece
            yield from self._take(rest[start : end.start()])
            start = end.end()
        self._rest = rest[start:]

    def end(self) -> Iterator[str]:
        """No more comes: a CR at the very end was a line's."""
        if self._rest.endswith(b"\r"):
            yield from self._take(self._rest[:-1])

    def _take(self, line: bytes) -> Iterator[str]:
        text = line.decode("utf-8", "replace")
        if self._is_first_line:
            text, self._is_first_line = text.removeprefix("\ufeff"), False
        field, _, value = text.partition(":")
        if not text:
            if self._data:
                yield "\n".join(self._data)
            self._data = []
        elif field == "data":
            self._data.append(value.removeprefix(" "))

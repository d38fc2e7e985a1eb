"""The bytes of a request's body as they come: bounded, and with their `Content-Encoding` undone.

gzip and deflate are what every language's standard library has. Any other coding is refused by its name.
"""

import asyncio
import zlib

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from serve_app.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType

CODINGS = "gzip, deflate"
_MAX_CODINGS = 2  # one in the other, as a proxy might do it
_MAX_MEMBERS = 1000  # of one gzip: each costs some microseconds, however short it is
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's `wbits`


class BodyStream:
    """An ASGI `receive` that counts. `num_bytes` have been read so far, as they are once nothing encodes them."""

    def __init__(self, headers: Headers, receive: Receive, max_bytes: int) -> None:
        self._headers = headers
        self._receive = receive
        self._max_bytes = max_bytes
        self._decoders: list[Inflater] = []
        self._has_begun = False
        self._num_raw_bytes = 0
        self.num_bytes = 0

    async def receive(self) -> Message:
        """Raises `BodyTooLarge`, `UnsupportedMediaType`, or `InvalidRequest` where the encoding is broken."""
        if not self._has_begun:
            self._has_begun = True
            declared = self._headers.get("content-length", "")
            if declared.isdigit() and int(declared) > self._max_bytes:
                raise self._too_large(int(declared))
            self._decoders = decoders_of(self._headers.getlist("content-encoding"), self._max_bytes)
        message = await self._receive()
        body = message.get("body", b"")
        self._num_raw_bytes += len(body)
        if self._num_raw_bytes > self._max_bytes:
            raise self._too_large(self._num_raw_bytes)
        if self._decoders and message["type"] == "http.request":
            is_last = not message.get("more_body", False)
            for decoder in self._decoders:  # on a thread: a kilobyte can become a megabyte
                body = await asyncio.to_thread(decoder.feed, body, is_last=is_last)
            message = {**message, "body": body}
        self.num_bytes += len(body)
        return message

    def _too_large(self, num_bytes: int) -> BodyTooLarge:
        return BodyTooLarge(
            f"the body has {num_bytes} bytes or more, and this service takes {self._max_bytes}: "
            "send fewer or smaller images"
        )


def decoders_of(header_values: list[str], max_bytes: int) -> "list[Inflater]":
    """Those that the bytes go through, one after the other. Raises `UnsupportedMediaType` naming the coding."""
    names = [name.strip().lower() for value in header_values for name in value.split(",")]
    names = [name for name in names if name not in ("", "identity")]
    for name in names:
        if name not in ("gzip", "x-gzip", "deflate"):
            raise UnsupportedMediaType(
                f"Content-Encoding '{name[:100]}' isn't taken here: send {CODINGS}, or the body as it is",
                "Content-Encoding",
            )
    if len(names) > _MAX_CODINGS:
        raise UnsupportedMediaType(
            f"Content-Encoding has {len(names)} codings, one in the other: send one", "Content-Encoding"
        )
    return [Inflater(name.removeprefix("x-"), max_bytes) for name in reversed(names)]


class Inflater:
    """Undoes one coding."""

    def __init__(self, name: str, max_bytes: int) -> None:
        self._name = name
        self._max_bytes = self._room = max_bytes
        self._num_members = 0
        self._zlib: zlib._Decompress | None = None  # between members

    def feed(self, data: bytes, *, is_last: bool) -> bytes:
        """What these bytes become. Raises `InvalidRequest` where they are broken, or `BodyTooLarge`."""
        pieces = []
        while data:
            inflater = self._zlib = self._zlib or self._begin(data)
            try:
                piece = inflater.decompress(data, self._room + 1)
            except zlib.error as exc:
                raise self._broken(
                    f"the body isn't {self._name}, as Content-Encoding says: send it as it is"
                ) from exc
            self._room -= len(piece)
            if self._room < 0:
                raise BodyTooLarge(
                    f"the body has more than {self._max_bytes} bytes without its {self._name}, all that this "
                    "service takes: send fewer or smaller images"
                )
            pieces.append(piece)
            data = inflater.unconsumed_tail
            if inflater.eof:
                data, self._zlib = inflater.unused_data, None
        if is_last and (self._zlib is not None or not self._num_members):
            raise self._broken(f"the body's {self._name} is cut short: send all of it")
        return b"".join(pieces)

    def _begin(self, data: bytes) -> "zlib._Decompress":
        """A decompressor for the next member; only gzip may have several."""
        self._num_members += 1
        if self._num_members > (_MAX_MEMBERS if self._name == "gzip" else 1):
            raise self._broken(f"the body goes on where its {self._name} ends: send one {self._name} stream")
        if self._name == "gzip":
            return zlib.decompressobj(_GZIP)
        # The standard means zlib's format by deflate; some clients leave its head out.
        return zlib.decompressobj(_ZLIB if data[0] & 0x0F == zlib.DEFLATED else _RAW)

    @staticmethod
    def _broken(message: str) -> InvalidRequest:
        return InvalidRequest(message, "Content-Encoding")

"""The bytes of one request's body as they come: bounded, and without their `Content-Encoding`."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from serve_app.errors import BodyTooLarge
from serve_app.exchange.content_encoding import Inflater, decoders_of


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

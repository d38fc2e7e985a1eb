"""httpx's requests over aiohttp's connections.

httpx's own pool looks at every connection for every request: one with an image costs 1.9 ms of processor time at 8
connections and 8.3 at 256, where this takes 0.5 (benchmarks/LOG.md). It knows no proxies.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import aiohttp
import httpx
from httpx_aiohttp.transport import AiohttpTransport


class Transport(AiohttpTransport):
    """At most `num_connections` at once, or as many as there are requests."""

    def __init__(self, num_connections: int | None) -> None:
        # None would be aiohttp's own limit of 100, and 0 is none.
        super().__init__(limits=httpx.Limits(max_connections=num_connections or 0))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Raises httpx's errors."""
        with _told_apart():
            response = await super().handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream), "made by an asynchronous transport"
        response.stream = _Stream(response.stream)
        return response


class _Stream(httpx.AsyncByteStream):
    """A response's body, whose errors are told apart as well."""

    def __init__(self, stream: httpx.AsyncByteStream) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _told_apart():
            async for chunk in self._stream:
                yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()


@contextmanager
def _told_apart() -> Iterator[None]:
    """`AiohttpTransport` calls each of them `ConnectTimeout`: no connection, a slow one, and one that broke.

    What isn't HTTP it lets through as aiohttp's own error.
    """
    try:
        yield
    except httpx.ConnectTimeout as exc:
        cause = exc.__cause__
        if isinstance(cause, aiohttp.ClientConnectorError):
            raise httpx.ConnectError(str(cause.os_error)) from exc
        if isinstance(cause, aiohttp.ServerTimeoutError):
            raise
        raise httpx.ReadError(str(exc) or "the connection was closed") from exc
    except aiohttp.ClientError as exc:
        raise httpx.RemoteProtocolError(" ".join(str(exc).split())) from exc

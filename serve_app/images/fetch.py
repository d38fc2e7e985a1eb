"""Fetches an image's bytes from a stranger's URL without giving the stranger access to our network.

Each hop opens its own connection. A `Door` makes its socket and checks the very address that is about to be connected
to, whether it came from DNS or from the URL. A name that changes its answer therefore gains nothing, and no pooled
connection outlives the decision under which it was opened. Knows nothing about images.
"""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from weakref import WeakValueDictionary

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from serve_app.config.http import ImageConfig
from serve_app.errors import ImageFetchFailed, ImageTooLarge, ImageUrlRefused, RequestError
from serve_app.images.address import SEND_BYTES, Door, UrlRules, checked_url, host_of
from serve_app.images.cache import Fetched, ImageCache, SharedFetches, allowed_keep_s

_READ_BYTES: Final = 65_536
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MAX_BEFORE_ANSWER_BYTES: Final = 65_536  # interim answers and the final one's head
_HEAD_SLICE_BYTES: Final = 4096  # parsed at once: thousands of interim answers would block the event loop
_MAX_ADDRESSES: Final = 16  # of one name: aiohttp's work grows with the square of their number


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one hop returned: the body or the redirect's target, and for how many seconds it may be kept."""

    content: bytes | URL = field(repr=False)
    keep_s: float


class ImageFetcher:
    """Fetches images' bytes within `config`'s limits. Caches bytes, never a connection. One per process.

    `resolver` replaces the system's name resolution.
    """

    def __init__(self, config: ImageConfig, resolver: AbstractResolver | None = None) -> None:
        self._config = config
        self._resolver = resolver
        self._rules = UrlRules(config)
        self._turns = _Turns(config.max_fetches, config.max_fetches_per_host)
        self._shared = SharedFetches(ImageCache(config.fetch_cache_bytes), config.fetch_timeout_s)

    async def fetch(self, url: str, param: str) -> bytes:
        """The body at an http(s) URL; cancelling closes the connection, unless others wait for the same URL.

        One deadline, `fetch_timeout_s`, covers waiting, name resolution, redirects and body. Every redirect passes
        the same checks, and one from https to http is refused. Raises `ImageUrlRefused`, `ImageFetchFailed`,
        `ImageTooLarge`; none names the address that a host resolved or redirected to.
        """
        try:
            async with asyncio.timeout(self._config.fetch_timeout_s):
                return await self._bytes(url)
        except TimeoutError as exc:
            raise ImageFetchFailed(
                f"{param}: the image didn't arrive within {self._config.fetch_timeout_s:g} s: "
                f"try again, use a faster server, {SEND_BYTES}",
                param,
            ) from exc
        except RequestError as exc:  # all who share a fetch get its failure, each with their own field
            raise exc.in_field(param) from exc

    async def close(self) -> None:
        """End the fetches that run."""
        await self._shared.close()

    async def _bytes(self, text: str) -> bytes:
        self._rules.check_that_urls_are_taken()
        url = checked_url(text)
        return await self._shared.get(str(url), lambda: self._follow(url))

    async def _follow(self, url: URL) -> Fetched:
        keep_s = self._config.fetch_cache_s
        for _ in range(self._config.max_redirects + 1):
            answer = await self._hop(url)
            keep_s = min(keep_s, answer.keep_s)
            if isinstance(answer.content, bytes):
                return Fetched(answer.content, keep_s)
            if (url.scheme, answer.content.scheme) == ("https", "http"):
                raise ImageUrlRefused("the https URL redirects to http: give a URL that stays on https")
            url = answer.content
        raise ImageFetchFailed(
            f"the URL redirects more than {self._config.max_redirects} times: "
            "give the address that the redirects end at"
        )

    async def _hop(self, url: URL) -> _Answer:
        """One request on a connection of its own."""
        door = self._rules.door(url)
        try:
            async with (
                self._turns.take(host_of(url)),
                self._session(door) as session,
                session.get(url, allow_redirects=False) as response,
            ):
                return await self._answer(response, url)
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            if door.has_refused or isinstance(exc, aiohttp.InvalidURL):
                raise self._rules.refusal() from exc
            raise ImageFetchFailed(f"{_reason(exc)}, {SEND_BYTES}") from exc

    def _session(self, door: Door) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            socket_factory=door,
            resolver=_FirstAddresses(self._resolver or aiohttp.ThreadedResolver()),
            use_dns_cache=False,
            force_close=True,
        )
        # aiohttp has no public way to set it
        connector._factory = partial(_Connection, loop=asyncio.get_running_loop())  # type: ignore[assignment]  # private
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # `fetch` holds the one deadline
            headers={"User-Agent": self._config.user_agent, "Accept": "image/*", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def _answer(self, response: aiohttp.ClientResponse, url: URL) -> _Answer:
        cache_control = ",".join(response.headers.getall("Cache-Control", ()))
        keep_s = allowed_keep_s(cache_control, self._config.fetch_cache_s)
        if response.status in _REDIRECTS and "Location" in response.headers:
            return _Answer(checked_url(response.headers["Location"], base=url), keep_s)
        return _Answer(await self._body(response), keep_s)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        if response.status != 200:
            raise ImageFetchFailed(
                f"the image's server answered with status {response.status}: "
                f"give a URL that anyone can read, {SEND_BYTES}"
            )
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise ImageFetchFailed(
                "the image's server sends it compressed although asked not to: "
                f"turn Content-Encoding off there, {SEND_BYTES}"
            )
        limit = self._config.max_image_bytes
        if (response.content_length or 0) > limit:
            raise _too_large(limit)
        body = bytearray()
        async for piece in response.content.iter_chunked(_READ_BYTES):
            body += piece
            if len(body) > limit:
                raise _too_large(limit)
        return bytes(body)


class _Connection(ResponseHandler):
    """Ends when a server sends too much before its answer: aiohttp would read it, and throw it away, for ever."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._num_head_bytes = 0
        self._is_answered = False

    def data_received(self, data: bytes) -> None:
        while data and not self._is_answered and self.transport is not None and not self.transport.is_closing():
            self._num_head_bytes += len(head := data[:_HEAD_SLICE_BYTES])
            super().data_received(head)
            data = data[len(head) :]
            if not self._is_answered and self._num_head_bytes > _MAX_BEFORE_ANSWER_BYTES:
                self.set_exception(aiohttp.ClientConnectionError("too much before the answer"))
                self.transport.abort()
        if data and self._is_answered:
            super().data_received(data)

    def feed_data(self, data: Any, size: int = 0) -> None:
        message, _ = data
        self._is_answered = self._is_answered or message.code >= 200
        super().feed_data(data, size)


class _Turns:
    """At most `num_total` hops at once, and `num_per_host` to one host."""

    def __init__(self, num_total: int, num_per_host: int) -> None:
        self._total = asyncio.Semaphore(num_total)
        self._num_per_host = num_per_host
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()  # the ones in use

    @asynccontextmanager
    async def take(self, host: str) -> AsyncIterator[None]:
        """Take the host's turn first: requests that wait for a slow host then don't delay others."""
        turns = self._hosts.setdefault(host, asyncio.Semaphore(self._num_per_host))
        async with turns, self._total:
            yield


class _FirstAddresses(AbstractResolver):
    """Passes on a name's first addresses, and raises `OSError` for a name without any, which aiohttp doesn't."""

    def __init__(self, resolver: AbstractResolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        addresses = (await self._resolver.resolve(host, port, family))[:_MAX_ADDRESSES]
        if not addresses:
            raise OSError("the name has no address")
        return addresses

    async def close(self) -> None:
        await self._resolver.close()


def _too_large(limit: int) -> RequestError:
    return ImageTooLarge(f"the image at this URL has more than {limit} bytes, the limit: send a smaller one")


def _reason(exc: BaseException) -> str:
    """What went wrong and the fix. The library's own text isn't used, because it names addresses and bodies."""
    match exc:
        case aiohttp.ClientConnectorDNSError() | UnicodeError():
            return "the host's name can't be resolved: check its spelling"
        case aiohttp.ClientSSLError():
            return "the server's TLS certificate doesn't hold for this name: use a server that has a valid one"
        case aiohttp.ClientConnectorError():
            return "no connection to the image's server: check host and port"
        case aiohttp.ClientPayloadError() | aiohttp.ServerDisconnectedError():
            return "the image's server broke off: try again"
        case _:
            return "the image's server doesn't answer in HTTP: check the URL"

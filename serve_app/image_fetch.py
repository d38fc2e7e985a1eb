"""Fetches a picture's bytes from a stranger's URL without becoming the stranger's hand inside our network.

Each hop opens its own connection, and its socket is made by `_Door`, which sees the very address about to be
connected to, whether it came from DNS or stood in the URL: a name that changes its answer gains nothing, and
no pooled connection outlives the decision it was opened under. Knows nothing about pictures.
"""

import asyncio
import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from serve_app.config import ImageConfig
from serve_app.errors import ImageFetchFailed, ImageTooLarge, ImageUrlRefused, ServeAppError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_URL_CHARS: Final = 8192  # servers take request lines up to about 8 KB
_READ_BYTES: Final = 65_536
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052; what DNS64 answers in IPv6-only networks
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
# What `is_global` lets through on some Python versions, or that tunnels to an IPv4 address of its own.
_NEVER_PUBLIC: Final[tuple[Network, ...]] = (
    ipaddress.IPv4Network("192.88.99.0/24"),  # 6to4 relays
    ipaddress.IPv4Network("100.64.0.0/10"),  # carrier-grade NAT
    ipaddress.IPv6Network("2001::/23"),  # Teredo and other protocol assignments
    ipaddress.IPv6Network("2002::/16"),  # 6to4
    ipaddress.IPv6Network("3fff::/20"),  # documentation
)
# A host whose last label is a number is an IPv4 address, in whatever spelling (WHATWG URL, "ends in a number").
_ENDS_IN_NUMBER: Final = re.compile(r"(?:^|\.)(?:[0-9]+|0[xX][0-9a-fA-F]*)\.*$")

_SEND_BYTES: Final = "or send the picture's bytes as base64"


def is_public(address: Address) -> bool:
    """Whether an address is globally routable unicast. IPv4 inside IPv6 (mapped, NAT64) counts as that IPv4."""
    address = _unwrap(address)
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    is_special = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    if is_special or address.is_link_local or address.is_private:
        return False
    return address.is_global and not _is_in(address, _NEVER_PUBLIC)


class ImageFetcher:
    """Gets one picture's bytes per call, within `config`'s limits. Holds no connection between calls.

    `resolver` replaces the system's name resolution.
    """

    def __init__(self, config: ImageConfig, resolver: AbstractResolver | None = None) -> None:
        self._config = config
        self._resolver = resolver
        self._networks = tuple(ipaddress.ip_network(network) for network in config.allowed_networks)

    async def fetch(self, url: str, param: str) -> bytes:
        """The body at an http(s) URL; cancelling closes the connection.

        One deadline, `fetch_timeout_s`, holds for name resolution, redirects and body together. Every redirect
        passes the same checks, and one from https to http is refused. Raises `ImageUrlRefused`,
        `ImageFetchFailed`, `ImageTooLarge`; none names the address that a host resolved or redirected to.
        """
        try:
            async with asyncio.timeout(self._config.fetch_timeout_s):
                return await self._follow(_checked_url(url, param), param)
        except TimeoutError as exc:
            raise ImageFetchFailed(
                f"{param}: the picture didn't arrive within {self._config.fetch_timeout_s:g} s: "
                f"use a faster server, {_SEND_BYTES}",
                param,
            ) from exc

    async def _follow(self, url: URL, param: str) -> bytes:
        for _ in range(self._config.max_redirects + 1):
            answer = await self._hop(url, param)
            if isinstance(answer, bytes):
                return answer
            if (url.scheme, answer.scheme) == ("https", "http"):
                raise ImageUrlRefused(
                    f"{param}: the https URL redirects to http: give a URL that stays on https", param
                )
            url = answer
        raise ImageFetchFailed(
            f"{param}: the URL redirects more than {self._config.max_redirects} times: "
            "give the address that the redirects end at",
            param,
        )

    async def _hop(self, url: URL, param: str) -> bytes | URL:
        """One request on a connection of its own: the body, or where the server redirects to."""
        door = _Door(_is_allowed_host(url, self._config.allowed_hosts), self._networks)
        try:
            async with self._session(door) as session, session.get(url, allow_redirects=False) as response:
                if response.status in _REDIRECTS and "Location" in response.headers:
                    return _checked_url(response.headers["Location"], param, base=url)
                return await self._body(response, param)
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            if door.has_refused or isinstance(exc, aiohttp.InvalidURL):
                raise _refused_address(param) from exc
            raise ImageFetchFailed(f"{param}: {_reason(exc)}, {_SEND_BYTES}", param) from exc

    def _session(self, door: "_Door") -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            socket_factory=door,
            resolver=self._resolver or aiohttp.ThreadedResolver(),
            use_dns_cache=False,
            force_close=True,
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # `fetch` holds the one deadline
            headers={"User-Agent": self._config.user_agent, "Accept": "image/*", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )

    async def _body(self, response: aiohttp.ClientResponse, param: str) -> bytes:
        if response.status != 200:
            raise ImageFetchFailed(
                f"{param}: the picture's server answered with status {response.status}: "
                f"give a URL that anyone can read, {_SEND_BYTES}",
                param,
            )
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise ImageFetchFailed(
                f"{param}: the picture's server sends it compressed although asked not to: "
                f"turn Content-Encoding off there, {_SEND_BYTES}",
                param,
            )
        limit = self._config.max_image_bytes
        if (response.content_length or 0) > limit:
            raise _too_large(limit, param)
        body = bytearray()
        async for piece in response.content.iter_chunked(_READ_BYTES):
            body += piece
            if len(body) > limit:
                raise _too_large(limit, param)
        return bytes(body)


class _Door:
    """Makes the sockets of one hop, only to addresses that the rules allow, and remembers a refusal."""

    def __init__(self, is_allowed_host: bool, networks: Sequence[Network]) -> None:
        self._is_allowed_host = is_allowed_host
        self._networks = networks
        self.has_refused = False

    def __call__(self, address_info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, socket_address = address_info
        if not self._allows(str(socket_address[0])):
            self.has_refused = True
            raise PermissionError(errno.EACCES, "address refused")  # an OSError: the host's next address is tried
        return socket.socket(family, kind, protocol)

    def _allows(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        if self._is_allowed_host or _is_in(address, self._networks) or _is_in(_unwrap(address), self._networks):
            return True
        return is_public(address)


def _checked_url(text: str, param: str, base: URL | None = None) -> URL:
    """The URL without its fragment, where scheme, host and spelling may be fetched at all; relative to `base`."""
    if len(text) > _MAX_URL_CHARS:
        raise ImageUrlRefused(
            f"{param}: the URL has {len(text)} characters and the limit is {_MAX_URL_CHARS}: "
            f"give a shorter URL, {_SEND_BYTES}",
            param,
        )
    try:
        url = base.join(_parsed(text)) if base else _parsed(text)
        host, port = url.raw_host, url.port
    except ValueError as exc:
        raise ImageUrlRefused(f"{param}: not a URL that can be read: write https://host/path", param) from exc
    if url.scheme not in ("http", "https"):
        raise ImageUrlRefused(
            f"{param}: only http, https and data URLs are taken: give such an address, {_SEND_BYTES}",
            param,
        )
    if not host or not port:
        raise ImageUrlRefused(f"{param}: the URL has no host or port to ask: write https://host/path", param)
    if "@" in url.raw_authority:
        raise ImageUrlRefused(f"{param}: the URL carries a user or password: leave them out, {_SEND_BYTES}", param)
    if _ENDS_IN_NUMBER.search(host) and not _is_dotted_quad(host):
        raise ImageUrlRefused(f"{param}: the host is a number: write an address as four decimal numbers", param)
    return url.with_fragment(None)


def _parsed(text: str) -> URL:
    """Kept letter by letter where it is plain ASCII, because servers sign the spelling of their URLs."""
    return URL(text, encoded=re.fullmatch(r"[!-~]*", text) is not None)


def _is_dotted_quad(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return ":" in host
    return True


def _is_allowed_host(url: URL, patterns: Sequence[str]) -> bool:
    """Whether the URL's host is on the allow-list, where an entry without a port means any port."""
    host = (url.raw_host or "").lower().rstrip(".")
    written = f"[{host}]" if ":" in host else host
    for pattern in patterns:
        for candidate in (written, f"{written}:{url.port}"):
            if candidate == pattern or (pattern.startswith("*.") and candidate.endswith(pattern[1:])):
                return True
    return False


def _unwrap(address: Address) -> Address:
    """The IPv4 address that an IPv4-mapped or NAT64 address stands for; any other as it is."""
    if isinstance(address, ipaddress.IPv6Address) and _is_in(address, (_MAPPED, _NAT64)):
        return ipaddress.IPv4Address(address.packed[-4:])
    return address


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def _refused_address(param: str) -> ServeAppError:
    return ImageUrlRefused(
        f"{param}: the URL leads to an address that isn't public: use a public one, {_SEND_BYTES}; "
        "an operator can allow it with 'allowed_hosts' or 'allowed_networks'",
        param,
    )


def _too_large(limit: int, param: str) -> ServeAppError:
    return ImageTooLarge(
        f"{param}: the picture at this URL has more than {limit} bytes, the limit: send a smaller one", param
    )


def _reason(exc: BaseException) -> str:
    """What went wrong and the fix, without the library's text: it names addresses and bodies."""
    match exc:
        case aiohttp.ClientConnectorDNSError() | UnicodeError():
            return "the host's name can't be resolved: check its spelling"
        case aiohttp.ClientSSLError():
            return "the server's TLS certificate doesn't hold for this name: use a server that has a valid one"
        case aiohttp.ClientConnectorError():
            return "no connection to the picture's server: check host and port"
        case aiohttp.ClientPayloadError() | aiohttp.ServerDisconnectedError():
            return "the picture's server broke off: try again"
        case _:
            return "the picture's server doesn't answer in HTTP: check the URL"

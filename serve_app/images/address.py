"""Which URLs and addresses an image may be fetched from: the operator's policy, and what is never allowed.

Opens no connection. Its errors don't name the request's field: the fetcher adds it.
"""

import errno
import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Final

import aiohttp
from yarl import URL

from serve_app.config.http import ImageConfig
from serve_app.errors import ImageUrlRefused

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SEND_BYTES: Final = "or send the image's bytes as base64"

_MAX_URL_CHARS: Final = 8192  # servers take request lines up to about 8 KB
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052; what DNS64 answers in IPv6-only networks
_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
# `is_global` lets these through on some Python versions, or they tunnel to an IPv4 address of their own.
_NEVER_PUBLIC: Final[tuple[Network, ...]] = (
    ipaddress.IPv4Network("192.88.99.0/24"),  # 6to4 relays
    ipaddress.IPv4Network("100.64.0.0/10"),  # carrier-grade NAT
    ipaddress.IPv6Network("2001::/23"),  # Teredo and other protocol assignments
    ipaddress.IPv6Network("2002::/16"),  # 6to4
    ipaddress.IPv6Network("3fff::/20"),  # documentation
)
# A host whose last label is a number is an IPv4 address, in whatever spelling (WHATWG URL, "ends in a number").
_ENDS_IN_NUMBER: Final = re.compile(r"(?:^|\.)(?:[0-9]+|0[xX][0-9a-fA-F]*)\.*$")


def is_public(address: Address) -> bool:
    """Whether an address is globally routable unicast. IPv4 inside IPv6 (mapped, NAT64) counts as that IPv4."""
    address = _unwrap(address)
    if isinstance(address, ipaddress.IPv6Address) and address not in _GLOBAL_UNICAST:
        return False
    is_special = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    if is_special or address.is_link_local or address.is_private:
        return False
    return address.is_global and not _is_in(address, _NEVER_PUBLIC)


def checked_url(text: str, base: URL | None = None) -> URL:
    """The URL, relative to `base` and without its fragment. Raises `ImageUrlRefused` for a scheme, a host or a
    spelling that is never fetched."""
    if len(text) > _MAX_URL_CHARS:
        raise ImageUrlRefused(
            f"the URL has {len(text)} characters and the limit is {_MAX_URL_CHARS}: give a shorter URL, {SEND_BYTES}"
        )
    try:
        url = base.join(_parsed(text)) if base else _parsed(text)
        host, port = url.raw_host, url.port
    except ValueError as exc:
        raise ImageUrlRefused("not a URL that can be read: write https://host/path") from exc
    if url.scheme not in ("http", "https"):
        raise ImageUrlRefused(f"only http, https and data URLs are taken: give such an address, {SEND_BYTES}")
    if not host or not port:
        raise ImageUrlRefused("the URL has no host or port to ask: write https://host/path")
    if "@" in url.raw_authority:
        raise ImageUrlRefused(f"the URL carries a user or password: leave them out, {SEND_BYTES}")
    if _ENDS_IN_NUMBER.search(host) and not _is_dotted_quad(host):
        raise ImageUrlRefused("the host is a number: write an address as four decimal numbers")
    return url.with_fragment(None)


def host_of(url: URL) -> str:
    """The URL's host in the spelling that lists and limits use; an IPv6 address without brackets."""
    return (url.raw_host or "").lower().rstrip(".")


class Door:
    """Makes the sockets of one hop, only for addresses that the rules allow, and remembers a refusal."""

    def __init__(self, rules: "UrlRules", *, is_listed_host: bool) -> None:
        self._rules = rules
        self._is_listed_host = is_listed_host
        self.has_refused = False

    def __call__(self, address_info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, socket_address = address_info
        if not (self._is_listed_host or self._rules.allows(str(socket_address[0]))):
            self.has_refused = True
            raise PermissionError(errno.EACCES, "address refused")  # an OSError: the host's next address is tried
        return socket.socket(family, kind, protocol)


class UrlRules:
    """The operator's policy (`ImageConfig.url_policy`), applied to every hop."""

    def __init__(self, config: ImageConfig) -> None:
        self._config = config
        self._networks = tuple(ipaddress.ip_network(network) for network in config.allowed_networks)

    def check_that_urls_are_taken(self) -> None:
        """Raises `ImageUrlRefused` if the operator allows no URLs."""
        if self._config.url_policy == "none":
            raise ImageUrlRefused(
                "this service fetches no URLs (its operator set url_policy to 'none'): "
                "send the image's bytes, as base64, as a data URI or as an upload"
            )

    def door(self, url: URL) -> Door:
        """What makes the sockets for a hop to this URL.

        Raises `ImageUrlRefused` if no address could be allowed, so that no name is resolved in vain.
        """
        is_listed_host = _is_listed_host(url, self._config.allowed_hosts)
        if self._config.url_policy == "listed" and not (is_listed_host or self._networks):
            raise self.refusal()
        return Door(self, is_listed_host=is_listed_host)

    def allows(self, text: str) -> bool:
        """Whether an address may be connected to, whatever name led to it."""
        try:
            address = ipaddress.ip_address(text)
        except ValueError:
            return False
        if _is_in(address, self._networks) or _is_in(_unwrap(address), self._networks):
            return True
        return self._config.url_policy == "public" and is_public(address)

    def refusal(self) -> ImageUrlRefused:
        """Says what the policy is; never which address was refused."""
        if self._config.url_policy == "listed":
            return ImageUrlRefused(
                "this service fetches only from what its operator listed (url_policy is 'listed'), and this URL "
                f"leads elsewhere: use a listed host, {SEND_BYTES}; "
                "an operator can list it in 'allowed_hosts' or 'allowed_networks'"
            )
        return ImageUrlRefused(
            f"the URL leads to an address that isn't public: use a public one, {SEND_BYTES}; "
            "an operator can allow it with 'allowed_hosts' or 'allowed_networks'"
        )


def _parsed(text: str) -> URL:
    """A plain ASCII URL keeps its spelling, because servers sign the spelling of their URLs."""
    return URL(text, encoded=re.fullmatch(r"[!-~]*", text) is not None)


def _is_dotted_quad(host: str) -> bool:
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return ":" in host
    return True


def _is_listed_host(url: URL, patterns: Sequence[str]) -> bool:
    """Whether the URL's host is on the allow-list, where an entry without a port means any port."""
    host = host_of(url)
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

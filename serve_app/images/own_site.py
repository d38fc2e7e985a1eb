"""Protects a service without keys from requests that another site's web page made a browser send.

Any page may post to http://localhost:8000; `Origin` says whose page it is. A page whose own name is made to lead here
(DNS rebinding) could also read the answers; its name is the `Host`. With keys neither matters, because no browser
adds one by itself. Knows nothing about routes.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from serve_app.errors import Forbidden

_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_-][a-z0-9._-]{0,253})(:[0-9]{1,5})?")
_WITHOUT_DOT = re.compile(r"[a-z][a-z0-9_-]{0,62}")  # the public DNS has none
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]{0,31}://(.{1,300})")
_LONGEST_SHOWN = 100


def require_own_site(
    headers: Iterable[tuple[bytes, bytes]], allowed_hosts: Sequence[str], cors_origins: Sequence[str]
) -> None:
    """Raise `Forbidden` if another site's page may have sent these headers. Their names are in lower case."""
    headers = list(headers)
    hosts = tuple(value for name, value in headers if name == b"host")
    origins = [value for name, value in headers if name == b"origin"]
    allowed = tuple(allowed_hosts)
    for host in hosts:
        if not _is_own_host(host, allowed):
            raise Forbidden(
                f"this service has no API keys and doesn't answer to the name '{_shown(host)}', which is anybody's: "
                "add it to allowed_hosts, or make keys (docs/security.md)", "Host",
            )  # fmt: skip
    for origin in origins:
        if not _is_own_origin(origin, hosts, allowed, tuple(cors_origins)):
            raise Forbidden(
                f"this service has no API keys, and takes nothing from pages of '{_shown(origin)}': add it to "
                "cors_origins, or make keys (docs/security.md)", "Origin",
            )  # fmt: skip


@lru_cache(1024)
def _is_own_host(host: bytes, allowed: tuple[str, ...]) -> bool:
    """Whether the host is a listed name, an address, or a name that no stranger can own.

    Those are this machine's names and names without a dot, which only a local network resolves. A page reached by an
    address came from that address.
    """
    if not host or "*" in allowed:
        return True
    match = _HOST.fullmatch(host.decode("latin-1").lower())
    if match is None:
        return False
    name, port = match[1].rstrip("."), match[2] or ""
    is_private = _is_loopback_name(name) or _WITHOUT_DOT.fullmatch(name) or _address(name)
    return bool(is_private) or _is_listed(name, port, allowed)


@lru_cache(1024)
def _is_own_origin(origin: bytes, hosts: tuple[bytes, ...], allowed: tuple[str, ...], cors: tuple[str, ...]) -> bool:
    """Whether the origin is this service, this machine or a listed site. `null` may be anybody's."""
    text = origin.decode("latin-1").lower().rstrip("/")
    if "*" in cors or "*" in allowed or text in (site.lower().rstrip("/") for site in cors):
        return True
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return False
    if any(host.decode("latin-1").lower() == match[1] for host in hosts):
        return True
    site = _HOST.fullmatch(match[1])
    if site is None:
        return False
    name, port = site[1].rstrip("."), site[2] or ""
    address = _address(name)
    return _is_loopback_name(name) or (address is not None and address.is_loopback) or _is_listed(name, port, allowed)


def _is_loopback_name(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost")  # RFC 6761: they never leave the machine


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name.strip("[]"))
    except ValueError:
        return None


def _is_listed(name: str, port: str, allowed: tuple[str, ...]) -> bool:
    """Entries are `host` (on any port), `host:port`, and `*.example.com` for the names below it."""
    return any(
        host == entry or (entry.startswith("*.") and host.endswith(entry[1:]))
        for entry in allowed
        for host in (name, name + port)
    )


def _shown(value: bytes) -> str:
    return value.decode("latin-1")[:_LONGEST_SHOWN]

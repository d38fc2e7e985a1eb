"""Hostile URLs: names, spellings, redirects and servers that mean harm, and that a good image loads right after.

Everything happens on this machine. `good.example` is a listed host with an image, `bad.example` a listed host whose
server misbehaves; every other name leads to the image's server too, and nothing allows it.
"""

import asyncio
import gzip
import re
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from serve_app.config.http import ImageConfig
from serve_app.errors import ImageFetchFailed, ImageTooLarge, ImageUrlRefused, RequestError
from serve_app.images.fetch import ImageFetcher
from tests.images.test_fetch import IMAGE, Answers, Site, site

__all__ = ["site"]  # the fixture

PARAM = "messages[0].content[1].image_url"
STAND_IN = "127.0.0.2"  # for a public address: allowed, and on this machine
HANGS_S = 0.5
LEAKS = ("127.", "10.", "169.254", "fd00", "::", "localhost", ".example", "secret", "Errno", "aiohttp")


class Names(AbstractResolver):
    """`good.example` and `bad.example` are here; all other names are answered by `others`."""

    def __init__(self, others: AbstractResolver) -> None:
        self.others = others
        self.here = Answers(["127.0.0.1"])

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        resolver = self.here if host in ("good.example", "bad.example") else self.others
        return await resolver.resolve(host, port, family)

    async def close(self) -> None:
        pass


def fetcher(others: AbstractResolver | None = None, **values: Any) -> ImageFetcher:
    config: dict[str, Any] = {
        "allowed_hosts": ("good.example", "bad.example"),
        "fetch_timeout_s": 20,
        "fetch_cache_bytes": 0,
        "max_image_bytes": 100_000,
    }
    return ImageFetcher(ImageConfig(**config | values), Names(others or Answers(["127.0.0.1"])))


async def check_refused(images: ImageFetcher, url: str, error_class: type[RequestError], words: str = "") -> None:
    with pytest.raises(RequestError) as raised:
        await images.fetch(url, PARAM)
    error = raised.value
    assert type(error) is error_class, error
    assert error.code == error_class.code
    assert error.param == PARAM
    assert error.message.startswith(f"{PARAM}: ")
    assert words in error.message
    assert not any(leak in error.message for leak in LEAKS), error.message


async def check_good_image(images: ImageFetcher, site: Site) -> None:
    site.requests.clear()
    assert await images.fetch(f"http://good.example:{site.port}/image.png", PARAM) == IMAGE
    assert [request.path for request in site.requests] == ["/image.png"]


# --- spellings of what must not be asked

ADDRESSES = {
    "loopback": "http://127.0.0.1:PORT/image.png",
    "loopback, default port": "http://127.0.0.1/",
    "loopback, elsewhere in its network": "http://127.255.255.254:PORT/",
    "short form of two parts": "http://127.1:PORT/",
    "short form of three parts": "http://127.0.1:PORT/",
    "decimal": "http://2130706433:PORT/",
    "decimal beyond 32 bits": "http://4294967297:PORT/",
    "hexadecimal": "http://0x7f000001:PORT/",
    "hexadecimal, loud": "http://0X7F000001:PORT/",
    "hexadecimal parts": "http://0x7f.0x0.0x0.0x1:PORT/",
    "hexadecimal without digits": "http://0x:PORT/",
    "octal": "http://017700000001:PORT/",
    "octal parts": "http://0177.0.0.1:PORT/",
    "mixed bases": "http://0177.0x0.1:PORT/",
    "padded with zeros": "http://127.000.000.001:PORT/",
    "five parts": "http://1.2.3.4.5/",
    "parts too large": "http://256.256.256.256/",
    "a number as last label": "http://example.1/",
    "trailing dot": "http://127.0.0.1.:PORT/",
    "trailing dots": "http://127.0.0.1..:PORT/",
    "full-width digits": "http://１２７.０.０.１:PORT/",
    "full-width dots": "http://127．0．0．1:PORT/",
    "ideographic dots": "http://127。0。0。1:PORT/",
    "circled digits": "http://①②⑦.⓪.⓪.①:PORT/",
    "Arabic digits": "http://١٢٧.0.0.1:PORT/",
    "percent-encoded": "http://%31%32%37.0.0.1:PORT/",
    "percent-encoded dots": "http://127%2e0%2e0%2e1:PORT/",
    "zero": "http://0:PORT/",
    "unspecified": "http://0.0.0.0:PORT/image.png",
    "private, class A": "http://10.0.0.1/",
    "private, class B": "http://172.31.255.255/",
    "private, class C": "http://192.168.1.1/",
    "carrier-grade NAT": "http://100.64.0.1/",
    "link-local": "http://169.254.0.1/",
    "metadata": "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
    "metadata, decimal": "http://2852039166/latest/meta-data/",
    "metadata, mapped": "http://[::ffff:169.254.169.254]/",
    "metadata, mapped in hexadecimal": "http://[::ffff:a9fe:a9fe]/",
    "metadata, NAT64": "http://[64:ff9b::169.254.169.254]/",
    "metadata, IPv6": "http://[fd00:ec2::254]/latest/",
    "metadata of Alibaba": "http://100.100.100.200/",
    "carrier-grade NAT, its end": "http://100.127.255.254/",
    "protocol assignments": "http://192.0.0.1/",
    "documentation network 1": "http://192.0.2.1/",
    "documentation network 2": "http://198.51.100.1/",
    "documentation network 3": "http://203.0.113.1/",
    "benchmark network": "http://198.18.0.1/",
    "6to4 relay": "http://192.88.99.1/",
    "multicast": "http://224.0.0.1/",
    "SSDP": "http://239.255.255.250:1900/",
    "reserved": "http://240.0.0.1/",
    "broadcast": "http://255.255.255.255/",
    "IPv6 loopback": "http://[::1]:PORT/",
    "IPv6 loopback, written out": "http://[0000:0000:0000:0000:0000:0000:0000:0001]:PORT/",
    "IPv6 unspecified": "http://[::]:PORT/",
    "IPv4-mapped loopback": "http://[::ffff:127.0.0.1]:PORT/image.png",
    "IPv4-mapped in hexadecimal": "http://[::ffff:7f00:1]:PORT/",
    "IPv4-compatible": "http://[::127.0.0.1]:PORT/",
    "IPv4-translated": "http://[::ffff:0:127.0.0.1]:PORT/",
    "NAT64 of loopback": "http://[64:ff9b::7f00:1]:PORT/",
    "NAT64, local prefix": "http://[64:ff9b:1::7f00:1]:PORT/",
    "6to4 of loopback": "http://[2002:7f00:1::]:PORT/",
    "6to4 of a private network": "http://[2002:a00:1::1]/",
    "6to4 of a public address": "http://[2002:808:808::]/",
    "NAT64 of a public address, local prefix": "http://[64:ff9b:1::8.8.8.8]/",
    "IPv6 segment routing": "http://[5f00::1]/",
    "IPv6 documentation, the newer": "http://[3fff::1]/",
    "Teredo": "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
    "ISATAP of loopback": "http://[fe80::5efe:127.0.0.1]/",
    "IPv6 link-local": "http://[fe80::1]/",
    "IPv6 zone": "http://[fe80::1%25eth0]/",
    "IPv6 zone on loopback": "http://[::1%25lo]:PORT/",
    "IPv6 site-local": "http://[fec0::1]/",
    "IPv6 unique local": "http://[fc00::1]/",
    "IPv6 multicast": "http://[ff02::1]/",
    "IPv6 discard": "http://[100::1]/",
    "IPv6 documentation": "http://[2001:db8::1]/",
    "IPv6 never closed": "http://[::1:PORT/",
    "IPv6 of the future": "http://[v1.fe80::1]/",
    "localhost": "http://localhost:PORT/image.png",
    "localhost, loud": "http://LOCALHOST:PORT/",
    "localhost, trailing dot": "http://localhost.:PORT/",
    "localhost below": "http://a.localhost:PORT/",
    "a name that leads to loopback": "http://loopback.example:PORT/image.png",
    "the listed host as a prefix": "http://good.example.evil.example:PORT/image.png",
    "the listed host as a suffix": "http://evilgood.example:PORT/image.png",
    "the listed host, look-alike": "http://gооd.example:PORT/image.png",  # Cyrillic
    "the listed host as user": "http://good.example@127.0.0.1:PORT/image.png",
    "the listed host as user of a name": "http://good.example:80@evil.example:PORT/",
    "the listed host behind a backslash": "http://127.0.0.1:PORT\\@good.example/",
    "the listed host before a backslash": "http://good.example\\@127.0.0.1:PORT/",
    "the listed host before a hash": "http://127.0.0.1:PORT#@good.example/",
    "the listed host before a question mark": "http://127.0.0.1:PORT?@good.example/",
    "two users": "http://a@good.example@127.0.0.1:PORT/",
    "empty user": "http://@127.0.0.1:PORT/",
    "user and password": "http://user:secret@good.example:PORT/image.png",
    "newline in the host": "http://loca\nlhost:PORT/",
    "tab in the host": "http://127.0.0\t.1:PORT/",
    "carriage return and header": "http://127.0.0.1:PORT/\r\nHost: good.example",
    "space in the host": "http://good.example .evil.example:PORT/",
    "NUL in the host": "http://good.example\0.evil.example:PORT/",
    "soft hyphen in the host": "http://local\u00adhost:PORT/",
    "empty host": "http:///image.png",
    "empty host with port": "http://:PORT/",
    "an empty international name": "http://xn--/",
    "only dots": "http://...:PORT/",
    "no slashes": "http:good.example/image.png",
    "one slash": "http:/good.example/image.png",
    "port 0": "http://good.example:0/",
    "port 99999": "http://good.example:99999/",
    "port -1": "http://good.example:-1/",
    "port in words": "http://good.example:http/",
    "file": "file:///etc/passwd",
    "file with host": "file://good.example/etc/passwd",
    "FTP": "ftp://good.example/image.png",
    "gopher": "gopher://127.0.0.1:6379/_SET%20x%20y",
    "dict": "dict://127.0.0.1:11211/stat",
    "ldap": "ldap://127.0.0.1/",
    "javascript": "javascript:fetch('http://127.0.0.1')",
    "blob": "blob:http://good.example/0b2c",
    "a scheme before a URL": "view-source:http://good.example/",
    "http twice": "http://http://good.example/",
    "data": "data:,x",
    "data look-alike": "data-uri:image/png;base64,AAAA",
    "data with slashes": "data://good.example/image.png",
    "unix socket": "http+unix://%2Frun%2Fdocker.sock/info",
    "websocket": "ws://good.example:PORT/",
    "no scheme": "//good.example/image.png",
    "a path": "/etc/passwd",
    "a name": "image.png",
    "nothing": "",
    "nine thousand characters": "http://good.example/" + "a" * 9000,
}


@pytest.mark.parametrize("url", ADDRESSES.values(), ids=list(ADDRESSES))
async def test_addresses(site: Site, url: str) -> None:
    images = fetcher()
    await check_refused(images, url.replace("PORT", str(site.port)), ImageUrlRefused)
    assert not site.requests
    await check_good_image(images, site)


IN_A_HEADER = [name for name, url in ADDRESSES.items() if re.match(r"\w+://[^/]", url) and len(url) < 8192]


@pytest.mark.parametrize("name", IN_A_HEADER)
async def test_addresses_behind_a_redirect(site: Site, name: str) -> None:
    """The first hop's host is listed, and its allowance must not rub off on the second."""
    location = ADDRESSES[name].replace("PORT", str(site.port)).translate(NO_LINE_ENDS).encode()
    async with serving(redirect(location)) as port:
        await check_refused(fetcher(), f"http://bad.example:{port}/", ImageUrlRefused)
    assert not site.requests


NO_LINE_ENDS = str.maketrans("", "", "\r\n\0")  # which would end the header


# --- names


class Broken(AbstractResolver):
    """Name resolution that fails, or that never ends."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        if self.error:
            raise self.error
        await asyncio.sleep(3600)
        return []

    async def close(self) -> None:
        pass


LATE = f"within {HANGS_S:g} s"
UNKNOWN = "can't be resolved"
MANY = [f"10.{n >> 8 & 255}.{n & 255}.1" for n in range(10_000)]
NAMES: dict[str, tuple[AbstractResolver, type[RequestError], str]] = {
    "loopback": (Answers(["127.0.0.1"]), ImageUrlRefused, "isn't public"),
    "metadata": (Answers(["169.254.169.254"]), ImageUrlRefused, "isn't public"),
    "metadata, IPv6": (Answers(["fd00:ec2::254"]), ImageUrlRefused, "isn't public"),
    "carrier-grade NAT": (Answers(["100.64.0.1"]), ImageUrlRefused, "isn't public"),
    "unspecified": (Answers(["0.0.0.0"]), ImageUrlRefused, "isn't public"),
    "IPv6 unspecified": (Answers(["::"]), ImageUrlRefused, "isn't public"),
    "multicast": (Answers(["ff02::1"]), ImageUrlRefused, "isn't public"),
    "IPv4-mapped": (Answers(["::ffff:127.0.0.1"]), ImageUrlRefused, "isn't public"),
    "NAT64": (Answers(["64:ff9b::10.0.0.1"]), ImageUrlRefused, "isn't public"),
    "zone": (Answers(["fe80::1%lo"]), ImageUrlRefused, "isn't public"),
    "all private": (Answers(["10.0.0.1", "192.168.0.1", "::1"]), ImageUrlRefused, "isn't public"),
    "ten thousand private ones": (Answers(MANY), ImageUrlRefused, "isn't public"),
    "an allowed one behind ten thousand": (Answers([*MANY, STAND_IN]), ImageUrlRefused, "isn't public"),
    "rebinding before the second hop": (Answers([STAND_IN], ["127.0.0.1"]), ImageUrlRefused, "isn't public"),
    "a short form": (Answers(["127.1"]), ImageUrlRefused, "isn't public"),
    "words for an address": (Answers(["secret text"]), ImageUrlRefused, "isn't public"),
    "an empty address": (Answers([""]), ImageUrlRefused, "isn't public"),
    "no address": (Answers([]), ImageFetchFailed, UNKNOWN),
    "no such name": (Broken(socket.gaierror(-2, "secret")), ImageFetchFailed, UNKNOWN),
    "a server that fails": (Broken(OSError("secret")), ImageFetchFailed, UNKNOWN),
    "a server that times out": (Broken(TimeoutError("secret")), ImageFetchFailed, ""),
    "an answer that isn't text": (Broken(UnicodeError("secret")), ImageFetchFailed, UNKNOWN),
    "no answer": (Broken(), ImageFetchFailed, LATE),
}


@pytest.mark.parametrize(("resolver", "error_class", "words"), NAMES.values(), ids=list(NAMES))
async def test_names(site: Site, resolver: AbstractResolver, error_class: type[RequestError], words: str) -> None:
    """Of each name's server the first hop redirects to itself, so that the name is asked about again."""
    deadline_s = HANGS_S if words == LATE else 20
    images = fetcher(resolver, allowed_networks=(f"{STAND_IN}/32",), fetch_timeout_s=deadline_s)
    await check_refused(images, f"http://name.example:{site.port}/to?at=/image.png", error_class, words)
    assert not [request for request in site.requests if request.path != "/to"]
    await check_good_image(images, site)


@pytest.mark.parametrize("addresses", [["127.0.0.1", STAND_IN], [STAND_IN, "127.0.0.1"], ["::1", "bad", STAND_IN]])
async def test_mixed_answers_lead_to_the_allowed_address_only(site: Site, addresses: list[str]) -> None:
    images = fetcher(Answers(addresses), allowed_networks=(f"{STAND_IN}/32",))
    assert await images.fetch(f"http://mixed.example:{site.port}/image.png", PARAM) == IMAGE
    assert site.asked_at == [STAND_IN]


# --- redirects

NO_PUBLIC = "isn't public"
REDIRECTS: dict[str, tuple[bytes, type[RequestError], str]] = {
    "to loopback": (b"http://127.0.0.1:PORT/image.png", ImageUrlRefused, NO_PUBLIC),
    "to loopback without scheme": (b"//127.0.0.1:PORT/image.png", ImageUrlRefused, NO_PUBLIC),
    "to loopback, decimal": (b"http://2130706433:PORT/", ImageUrlRefused, "number"),
    "to IPv6 loopback": (b"http://[::1]:PORT/", ImageUrlRefused, NO_PUBLIC),
    "to the metadata address": (b"http://169.254.169.254/latest/", ImageUrlRefused, NO_PUBLIC),
    "to a name that leads to loopback": (b"http://other.example:PORT/image.png", ImageUrlRefused, NO_PUBLIC),
    "to a file": (b"file:///etc/passwd", ImageUrlRefused, "only http"),
    "to a file in a relative way": (b"file:image.png", ImageUrlRefused, "only http"),
    "to data": (b"data:image/png;base64,AAAA", ImageUrlRefused, "only http"),
    "to javascript": (b"javascript:alert(1)", ImageUrlRefused, "only http"),
    "to gopher": (b"gopher://127.0.0.1:6379/_x", ImageUrlRefused, "only http"),
    "with a password": (b"http://user:secret@good.example:PORT/image.png", ImageUrlRefused, "user or password"),
    "with the listed host as user": (b"http://good.example@127.0.0.1:PORT/", ImageUrlRefused, "user or password"),
    "with a backslash": (b"http://good.example\\@127.0.0.1:PORT/", ImageUrlRefused, ""),
    "to port 0": (b"http://good.example:0/", ImageUrlRefused, ""),
    "to port 99999": (b"http://good.example:99999/", ImageUrlRefused, ""),
    "to an open bracket": (b"http://[::1", ImageUrlRefused, ""),
    "to bytes that are no text": (b"http://\xff\xfe.example/", ImageUrlRefused, ""),
    "to eight thousand characters": (b"/" + b"a" * 8100, ImageFetchFailed, ""),
    "to itself": (b"http://bad.example:BAD/", ImageFetchFailed, "redirects more than 3 times"),
    "to itself, in a relative way": (b"?again", ImageFetchFailed, "redirects more than 3 times"),
    "to itself, with a fragment": (b"#x", ImageFetchFailed, "redirects more than 3 times"),
    "to nowhere": (b"", ImageFetchFailed, "redirects more than 3 times"),
    "to a loop elsewhere": (b"http://good.example:PORT/loop/0", ImageFetchFailed, "redirects more than 3 times"),
    "to a missing page": (b"http://good.example:PORT/nothing", ImageFetchFailed, "status 404"),
}


@pytest.mark.parametrize(("location", "error_class", "words"), REDIRECTS.values(), ids=list(REDIRECTS))
async def test_redirects(site: Site, location: bytes, error_class: type[RequestError], words: str) -> None:
    images = fetcher()
    async with serving(redirect(location.replace(b"PORT", str(site.port).encode()))) as port:
        await check_refused(images, f"http://bad.example:{port}/", error_class, words)
    assert not [request for request in site.requests if request.path == "/image.png"]
    await check_good_image(images, site)


@pytest.mark.parametrize("location", [b"http://good.example:PORT/image.png#x", b"//good.example:PORT/image.png"])
async def test_redirects_that_are_fine(site: Site, location: bytes) -> None:
    async with serving(redirect(location.replace(b"PORT", str(site.port).encode()))) as port:
        assert await fetcher().fetch(f"http://bad.example:{port}/", PARAM) == IMAGE


# --- servers


@dataclass(frozen=True)
class Behaviour:
    """What a server does once it has read a request: it says `start`, then `again` for ever, then leaves."""

    start: bytes = b""
    again: bytes = b""
    pause_s: float = 0.0
    stays: bool = False
    resets: bool = False

    async def __call__(self, writer: asyncio.StreamWriter, port: int) -> None:
        writer.write(self.start.replace(b"BAD", str(port).encode()))
        await writer.drain()
        while self.again:
            writer.write(self.again)
            await writer.drain()
            await asyncio.sleep(self.pause_s)
        if self.stays:
            await asyncio.sleep(3600)
        if self.resets:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


@asynccontextmanager
async def serving(behave: Callable[[asyncio.StreamWriter, int], Awaitable[None]]) -> AsyncIterator[int]:
    """The port of a server that behaves so towards each that asks; whoever leaves ends it."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            answering = asyncio.create_task(_quietly(behave(writer, port)))
            leaving = asyncio.create_task(_quietly(reader.read()))
            tasks.update((answering, leaving))
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            answering.cancel()
            leaving.cancel()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    try:
        yield port
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _quietly(work: Awaitable[Any]) -> None:
    with suppress(ConnectionError):
        await work


def redirect(location: bytes) -> Behaviour:
    return Behaviour(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location + b"\r\n\r\n")


def ok(*headers: bytes, body: bytes = b"", **values: Any) -> Behaviour:
    lines = b"".join(header + b"\r\n" for header in headers)
    return Behaviour(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n" + body, **values)


def status(line: bytes, *headers: bytes) -> Behaviour:
    lines = b"".join(header + b"\r\n" for header in (*headers, b"Content-Length: 6"))
    return Behaviour(b"HTTP/1.1 " + line + b"\r\n" + lines + b"\r\nsecret")


CHUNKED = b"Transfer-Encoding: chunked"
BROKE = "broke off"
NO_HTTP = "doesn't answer in HTTP"
ENCODED = "Content-Encoding"
SERVERS: dict[str, tuple[Behaviour, type[RequestError], str]] = {
    "silence": (Behaviour(stays=True), ImageFetchFailed, LATE),
    "a status line and silence": (Behaviour(b"HTTP/1.1 200 OK\r\n", stays=True), ImageFetchFailed, LATE),
    "headers and silence": (ok(b"Content-Length: 9", body=b"x", stays=True), ImageFetchFailed, LATE),
    "headers that drip": (Behaviour(b"HTTP/1.1 200 OK\r\nX: ", b"a", 0.02), ImageFetchFailed, LATE),
    "a body that drips": (ok(again=b"a", pause_s=0.02), ImageFetchFailed, LATE),
    "chunks that drip": (ok(CHUNKED, again=b"1\r\na\r\n", pause_s=0.02), ImageFetchFailed, LATE),
    "a body without end": (ok(again=b"a" * 10_000), ImageTooLarge, "100000 bytes"),
    "chunks without end": (ok(CHUNKED, again=b"3e8\r\n" + b"a" * 1000 + b"\r\n"), ImageTooLarge, "100000 bytes"),
    "a length too large": (ok(b"Content-Length: 100001", stays=True), ImageTooLarge, "100000 bytes"),
    "a length of a terabyte": (ok(b"Content-Length: 1099511627776"), ImageTooLarge, "100000 bytes"),
    "a length of a thousand digits": (ok(b"Content-Length: " + b"9" * 1000), ImageFetchFailed, ""),
    "a length that isn't reached": (ok(b"Content-Length: 500", body=IMAGE[:99]), ImageFetchFailed, BROKE),
    "a negative length": (ok(b"Content-Length: -1", body=b"secret"), ImageFetchFailed, NO_HTTP),
    "a length in words": (ok(b"Content-Length: secret"), ImageFetchFailed, NO_HTTP),
    "two lengths": (ok(b"Content-Length: 5", b"Content-Length: 6", body=b"secret"), ImageFetchFailed, NO_HTTP),
    "a length and chunks": (ok(b"Content-Length: 6", CHUNKED, body=b"0\r\n\r\n"), ImageFetchFailed, NO_HTTP),
    "a chunk's size in words": (ok(CHUNKED, body=b"zz\r\nsecret\r\n"), ImageFetchFailed, ""),
    "a negative chunk": (ok(CHUNKED, body=b"-5\r\nsecret\r\n"), ImageFetchFailed, ""),
    "a chunk of 2^64 bytes": (ok(CHUNKED, body=b"10000000000000000\r\nsecret"), ImageFetchFailed, ""),
    "a chunk longer than said": (ok(CHUNKED, body=b"2\r\nsecret\r\n0\r\n\r\n"), ImageFetchFailed, ""),
    "chunks without the last": (ok(CHUNKED, body=b"6\r\nsecret\r\n"), ImageFetchFailed, BROKE),
    "a chunk extension without end": (ok(CHUNKED, body=b"5;", again=b"a" * 1000), ImageFetchFailed, LATE),
    "trailers without end": (ok(CHUNKED, body=b"1\r\na\r\n0\r\n", again=b"X: y\r\n" * 100), ImageFetchFailed, ""),
    "a reset at once": (Behaviour(resets=True), ImageFetchFailed, ""),
    "a reset in the headers": (Behaviour(b"HTTP/1.1 200 OK\r\nX:", resets=True), ImageFetchFailed, ""),
    "a reset in the body": (ok(b"Content-Length: 99", body=b"secret", resets=True), ImageFetchFailed, ""),
    "a farewell at once": (Behaviour(), ImageFetchFailed, BROKE),
    "a farewell in the headers": (Behaviour(b"HTTP/1.1 200 OK\r\nX: secret"), ImageFetchFailed, BROKE),
    "an SSH server": (Behaviour(b"SSH-2.0-OpenSSH_9 secret\r\n"), ImageFetchFailed, NO_HTTP),
    "a Redis server": (Behaviour(b"-ERR secret\r\n"), ImageFetchFailed, NO_HTTP),
    "a TLS server": (Behaviour(b"\x15\x03\x01\0\x02\x02\x46"), ImageFetchFailed, NO_HTTP),
    "an HTTP/2 server": (Behaviour(b"\0\0\x12\x04\0\0\0\0\0" + b"\0" * 18), ImageFetchFailed, NO_HTTP),
    "HTTP/0.9": (Behaviour(b"<html>secret</html>"), ImageFetchFailed, NO_HTTP),
    "a status in words": (Behaviour(b"HTTP/1.1 abc secret\r\n\r\n"), ImageFetchFailed, NO_HTTP),
    "a status of five digits": (Behaviour(b"HTTP/1.1 20000 secret\r\n\r\n"), ImageFetchFailed, NO_HTTP),
    "a reason without end": (Behaviour(b"HTTP/1.1 200 ", b"a" * 1000), ImageFetchFailed, NO_HTTP),
    "a header of 100 KB": (ok(b"X: " + b"a" * 100_000), ImageFetchFailed, NO_HTTP),
    "a header without end": (Behaviour(b"HTTP/1.1 200 OK\r\nX: ", b"a" * 1000), ImageFetchFailed, NO_HTTP),
    "headers without end": (Behaviour(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 100), ImageFetchFailed, NO_HTTP),
    "cookies without end": (Behaviour(b"HTTP/1.1 200 OK\r\n", b"Set-Cookie: a=b\r\n" * 9), ImageFetchFailed, NO_HTTP),
    "a header without colon": (ok(b"secret"), ImageFetchFailed, NO_HTTP),
    "a header with NUL": (ok(b"X: a\0b"), ImageFetchFailed, NO_HTTP),
    "interim answers without end": (Behaviour(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 9), ImageFetchFailed, NO_HTTP),
    "early hints without end": (Behaviour(b"", b"HTTP/1.1 103 X\r\nA: b\r\n\r\n" * 9), ImageFetchFailed, NO_HTTP),
    "empty lines without end": (Behaviour(b"", b"\r\n" * 100), ImageFetchFailed, NO_HTTP),
    "another protocol": (status(b"101 Switching Protocols", b"Upgrade: secret"), ImageFetchFailed, "status 101"),
    "no content": (Behaviour(b"HTTP/1.1 204 No Content\r\n\r\n"), ImageFetchFailed, "status 204"),
    "a part": (status(b"206 Partial Content", b"Content-Range: bytes 0-5/9"), ImageFetchFailed, "status 206"),
    "choices": (status(b"300 Multiple Choices"), ImageFetchFailed, "status 300"),
    "a redirect to nowhere": (status(b"302 Found"), ImageFetchFailed, "status 302"),
    "not modified": (Behaviour(b"HTTP/1.1 304 Not Modified\r\n\r\n"), ImageFetchFailed, "status 304"),
    "a proxy to use": (status(b"305 Use Proxy", b"Location: http://127.0.0.1/"), ImageFetchFailed, "status 305"),
    "a password wanted": (status(b"401 X", b"WWW-Authenticate: Basic realm=secret"), ImageFetchFailed, "status 401"),
    "a proxy's password wanted": (status(b"407 X", b"Proxy-Authenticate: Basic"), ImageFetchFailed, "status 407"),
    "forbidden": (status(b"403 secret"), ImageFetchFailed, "status 403"),
    "not found": (status(b"404 Not Found"), ImageFetchFailed, "status 404"),
    "too many requests": (status(b"429 X", b"Retry-After: 99999"), ImageFetchFailed, "status 429"),
    "an error": (status(b"500 secret"), ImageFetchFailed, "status 500"),
    "away": (status(b"503 secret", b"Refresh: 0; url=http://127.0.0.1/"), ImageFetchFailed, "status 503"),
    "gzip": (ok(b"Content-Encoding: gzip", body=gzip.compress(IMAGE)), ImageFetchFailed, ENCODED),
    "a gzip bomb": (ok(b"Content-Encoding: x-gzip", body=gzip.compress(bytes(10**7))), ImageFetchFailed, ENCODED),
    "brotli": (ok(b"Content-Encoding: br", body=b"secret"), ImageFetchFailed, ENCODED),
    "encoded twice": (ok(b"Content-Encoding: identity, gzip", body=b"secret"), ImageFetchFailed, ENCODED),
    "an unknown encoding": (ok(b"Content-Encoding: secret", body=b"secret"), ImageFetchFailed, ENCODED),
}


@pytest.mark.parametrize(("behaviour", "error_class", "words"), SERVERS.values(), ids=list(SERVERS))
async def test_servers(site: Site, behaviour: Behaviour, error_class: type[RequestError], words: str) -> None:
    images = fetcher(fetch_timeout_s=HANGS_S if words == LATE else 20)
    async with serving(behaviour) as port:
        await check_refused(images, f"http://bad.example:{port}/?token=secret", error_class, words)
    await check_good_image(images, site)


FINE = {
    "a body without length": ok(body=IMAGE),
    "an interim answer": Behaviour(b"HTTP/1.1 100 Continue\r\n\r\n" + ok(body=IMAGE).start),
    "a hundred interim answers": Behaviour(b"HTTP/1.1 103 X\r\nLink: a\r\n\r\n" * 100 + ok(body=IMAGE).start),
    "a wrong type": ok(b"Content-Type: text/html", body=IMAGE),
    "an address on a success": ok(b"Location: http://127.0.0.1/", body=IMAGE),
    "an unknown transfer encoding": ok(b"Transfer-Encoding: something", body=IMAGE),
    "identity": ok(b"Content-Encoding: identity", body=IMAGE),
    "HTTP/1.0": Behaviour(b"HTTP/1.0 200 OK\r\n\r\n" + IMAGE),
    "chunks with extensions": ok(CHUNKED, body=b"%x;a=b\r\n" % len(IMAGE) + IMAGE + b"\r\n0\r\nX: y\r\n\r\n"),
}


@pytest.mark.parametrize("behaviour", FINE.values(), ids=list(FINE))
async def test_servers_that_are_odd_but_fine(behaviour: Behaviour) -> None:
    async with serving(behaviour) as port:
        assert await fetcher().fetch(f"http://bad.example:{port}/", PARAM) == IMAGE


NUM_HOSTILE_URLS = len(ADDRESSES) + len(NAMES) + len(REDIRECTS) + len(SERVERS)

"""Fetching images from real servers on this machine; the long lists of hostile URLs are in test_hostile_urls.py."""

import asyncio
import gzip
import ipaddress
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import ValidationError

from serve_app.config.http import ImageConfig
from serve_app.errors import ImageFetchFailed, ImageTooLarge, ImageUrlRefused, RequestError
from serve_app.images.address import is_public
from serve_app.images.fetch import ImageFetcher
from serve_app.images.gate import ImageGate, ImageUrl
from tests.drawings import png

IMAGE = png("red", "circle", (40, 30))
LOOPBACK = "127.0.0.1/32"


class Site:
    """An image server on this machine; `requests` is what it was asked, `asked_at` at which of its addresses."""

    def __init__(self) -> None:
        self.requests: list[web.BaseRequest] = []
        self.asked_at: list[str] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        assert request.transport is not None
        self.asked_at.append(request.transport.get_extra_info("sockname")[0])
        match request.path.strip("/").split("/"):
            case ["image.png"]:
                return web.Response(body=IMAGE, headers={"Set-Cookie": "a=b"})
            case ["status", status]:
                return web.Response(status=int(status), body=b"secret body")
            case ["to"]:
                return web.Response(status=int(request.query.get("status", 302)),
                                    headers={"Location": request.query["at"]})  # fmt: skip
            case ["loop", number]:
                raise web.HTTPFound(f"/loop/{int(number) + 1}")
            case ["encoded", encoding]:
                return web.Response(body=gzip.compress(IMAGE), headers={"Content-Encoding": encoding})
            case ["chunks", number]:
                return await self._drip(request, int(number), pause_s=0)
            case ["drip"]:
                return await self._drip(request, 10_000, pause_s=0.02)
            case ["claims", length]:
                return await self._cut_short(request, int(length))
            case _:
                raise web.HTTPNotFound

    async def _drip(self, request: web.BaseRequest, num_chunks: int, pause_s: float) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(num_chunks):
            await response.write(b"x" * 100)
            await asyncio.sleep(pause_s)
        return response

    async def _cut_short(self, request: web.BaseRequest, length: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(length)})
        await response.prepare(request)
        await response.write(b"x" * 10)
        assert request.transport is not None
        request.transport.close()
        return response


@asynccontextmanager
async def running(host: str = "0.0.0.0", tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    site = Site()
    runner = web.ServerRunner(web.Server(site.answer), shutdown_timeout=0)
    await runner.setup()
    tcp = web.TCPSite(runner, host, 0, ssl_context=tls)
    await tcp.start()
    site.port = runner.addresses[0][1]
    try:
        yield site
    finally:
        await runner.cleanup()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with running() as site:
        yield site


@asynccontextmanager
async def raw_server(answer: bytes, *, keeps_open: bool = False) -> AsyncIterator[str]:
    """A server that answers anything with these bytes, which need not be HTTP."""

    num_open, all_closed = 0, asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_open
        num_open += 1
        writer.write(answer)
        if keeps_open:
            await reader.read()
        with suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()
        num_open -= 1
        if not num_open:
            all_closed.set()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x"
    finally:
        server.close()
        await asyncio.wait_for(all_closed.wait(), 20)


class Answers(AbstractResolver):
    """Name resolution that gives one list of addresses after another, and the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.num_asked = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        addresses = self.answers[min(self.num_asked, len(self.answers) - 1)]
        self.num_asked += 1
        return [
            ResolveResult(hostname=host, host=address, port=port, proto=0, flags=socket.AI_NUMERICHOST,
                          family=socket.AF_INET6 if ":" in address else socket.AF_INET)
            for address in addresses
        ]  # fmt: skip

    async def close(self) -> None:
        pass


async def fetch(url: str, resolver: AbstractResolver | None = None, **values: Any) -> bytes:
    """With 127.0.0.1 allowed, unless the config values say otherwise."""
    config = ImageConfig(**({"allowed_networks": (LOOPBACK,), "fetch_timeout_s": 20} | values))
    return await ImageFetcher(config, resolver).fetch(url, "images[3]")


async def failure(url: str, resolver: AbstractResolver | None = None, **values: Any) -> RequestError:
    with pytest.raises(RequestError) as raised:
        await fetch(url, resolver, **values)
    error = raised.value
    assert error.param == "images[3]"
    assert error.message.startswith("images[3]: ")
    assert not any(word in error.message for word in ("127.", "10.0.", "secret", "Errno", "localhost", "inner"))
    return error


# --- what works


async def test_an_image(site: Site) -> None:
    assert await fetch(f"{site.url}/image.png") == IMAGE


async def test_the_request_says_little(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    await fetch(f"{site.url}/image.png?a=%2Fb&c=d+e#fragment", user_agent="tester/1")
    (request,) = site.requests
    assert request.raw_path == "/image.png?a=%2Fb&c=d+e"
    assert dict(request.headers) == {
        "Host": f"127.0.0.1:{site.port}",
        "User-Agent": "tester/1",
        "Accept": "image/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed_without_cookies_or_referer(site: Site, status: int) -> None:
    assert await fetch(f"{site.url}/to?status={status}&at=/image.png") == IMAGE
    assert not {"Cookie", "Referer"} & set(site.requests[-1].headers)


async def test_as_many_redirects_as_allowed(site: Site) -> None:
    assert await fetch(f"{site.url}/to?at=/to?at=/image.png", max_redirects=2) == IMAGE
    error = await failure(f"{site.url}/to?at=/to?at=/image.png", max_redirects=1)
    assert isinstance(error, ImageFetchFailed)
    assert "more than 1 times" in error.message


async def test_the_gate_decodes_what_was_fetched(site: Site) -> None:
    gate = ImageGate(ImageConfig(allowed_networks=(LOOPBACK,)))
    assert (await gate.load(ImageUrl(f" {site.url}/image.png\n"), "image")).width == 40
    await gate.close()


ALLOWING: dict[str, dict[str, tuple[str, ...]]] = {
    "network": {"allowed_networks": ("127.0.0.0/8",)},
    "host": {"allowed_hosts": ("images.inner.example",)},
    "host with port": {"allowed_hosts": ("Images.inner.example:PORT",)},
    "wildcard": {"allowed_hosts": ("*.example",)},
    "wildcard with port": {"allowed_hosts": ("*.inner.example:PORT",)},
}
NOT_ALLOWING: dict[str, dict[str, tuple[str, ...]]] = {
    "nothing": {},
    "other network": {"allowed_networks": ("10.0.0.0/8", "::/0")},
    "other host": {"allowed_hosts": ("inner.example", "images.inner.exampl", "ximages.inner.example")},
    "other port": {"allowed_hosts": ("images.inner.example:1",)},
    "wildcard below": {"allowed_hosts": ("*.images.inner.example", "*.nner.example")},
}


@pytest.mark.parametrize("rules", ALLOWING.values(), ids=list(ALLOWING))
@pytest.mark.parametrize("host", ["images.inner.example", "IMAGES.inner.example."])
async def test_allow_list(site: Site, rules: dict[str, tuple[str, ...]], host: str) -> None:
    allowed: dict[str, Any] = {"allowed_networks": ()}
    allowed |= {key: tuple(v.replace("PORT", str(site.port)) for v in values) for key, values in rules.items()}
    assert await fetch(f"http://{host}:{site.port}/image.png", Answers(["127.0.0.1"]), **allowed) == IMAGE


@pytest.mark.parametrize("rules", NOT_ALLOWING.values(), ids=list(NOT_ALLOWING))
async def test_what_the_allow_list_does_not_name(site: Site, rules: dict[str, tuple[str, ...]]) -> None:
    url = f"http://images.inner.example:{site.port}/image.png"
    error = await failure(url, Answers(["127.0.0.1"]), **({"allowed_networks": ()} | rules))
    assert isinstance(error, ImageUrlRefused)
    assert not site.requests


@pytest.mark.parametrize("host", ["http://a.example", "*", "a b", "a/b", "", "*.*.example", "a:b", ":80"])
def test_an_allow_list_of_something_else_is_a_config_error(host: str) -> None:
    with pytest.raises(ValidationError, match="is no host"):
        ImageConfig(allowed_hosts=(host,))


# --- addresses that must not be asked


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.localdomain", "ip6-localhost", "0x7f000001"])
async def test_the_systems_names_for_this_machine(site: Site, host: str) -> None:
    error = await failure(f"http://{host}:{site.port}/image.png", allowed_networks=())
    assert isinstance(error, ImageUrlRefused) or "can't be resolved" in error.message
    assert not site.requests


@pytest.mark.parametrize(
    ("address", "expected"),
    [("8.8.8.8", True), ("1.1.1.1", True), ("2606:4700:4700::1111", True), ("2a00:1450:4001::200e", True),
     ("::ffff:8.8.8.8", True), ("64:ff9b::8.8.8.8", True), ("192.0.0.170", False), ("100.128.0.1", True),
     ("172.32.0.1", True), ("64:ff9b::192.168.0.1", False), ("::8.8.8.8", False), ("4000::1", False)],
)  # fmt: skip
def test_public_addresses(address: str, expected: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is expected


async def test_dns_rebinding_changes_nothing(site: Site) -> None:
    """The server listens on every loopback address; only 127.0.0.1 is allowed, and 127.0.0.2 is the attack."""
    url = f"http://rebind.example:{site.port}/image.png"
    good_then_bad = Answers(["127.0.0.1"], ["127.0.0.2"])
    assert await fetch(url, good_then_bad) == IMAGE
    assert good_then_bad.num_asked == 1
    assert isinstance(await failure(url, good_then_bad), ImageUrlRefused)
    assert len(site.requests) == 1


async def test_a_redirect_to_the_same_name_is_resolved_and_checked_again(site: Site) -> None:
    resolver = Answers(["127.0.0.1"], ["127.0.0.2"])
    error = await failure(f"http://rebind.example:{site.port}/to?at=/image.png", resolver)
    assert isinstance(error, ImageUrlRefused)
    assert [request.path for request in site.requests] == ["/to"]


async def test_only_the_checked_of_several_addresses_is_asked(site: Site) -> None:
    url = f"http://mixed.example:{site.port}/image.png"
    for answer in (["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"], ["::1", "127.0.0.1"]):
        assert await fetch(url, Answers(answer)) == IMAGE
    assert site.asked_at == ["127.0.0.1"] * 3
    assert isinstance(await failure(url, Answers(["127.0.0.2", "::1", "10.0.0.1"])), ImageUrlRefused)


async def test_an_allowance_for_one_host_is_not_lent_to_another(site: Site) -> None:
    config = ImageConfig(allowed_hosts=("good.example",))
    fetcher = ImageFetcher(config, Answers(["127.0.0.1"]))
    assert await fetcher.fetch(f"http://good.example:{site.port}/image.png", "image") == IMAGE
    for host in ("evil.example", "127.0.0.1"):
        with pytest.raises(ImageUrlRefused):
            await fetcher.fetch(f"http://{host}:{site.port}/image.png", "image")
    assert len(site.requests) == 1


# --- servers that misbehave


@pytest.mark.parametrize("status", [201, 204, 206, 300, 304, 400, 401, 403, 404, 429, 500, 503])
async def test_other_statuses(site: Site, status: int) -> None:
    error = await failure(f"{site.url}/status/{status}")
    assert isinstance(error, ImageFetchFailed)
    assert f"status {status}" in error.message


async def test_endless_redirects(site: Site) -> None:
    error = await failure(f"{site.url}/loop/0", max_redirects=4)
    assert isinstance(error, ImageFetchFailed)
    assert len(site.requests) == 5


@pytest.mark.parametrize("path", ["claims/1001", "claims/99999999999", "chunks/11", "drip"])
async def test_too_many_bytes(site: Site, path: str) -> None:
    error = await failure(f"{site.url}/{path}", max_image_bytes=1000)
    assert isinstance(error, ImageTooLarge)
    assert "1000 bytes" in error.message


async def test_exactly_the_limit(site: Site) -> None:
    assert len(await fetch(f"{site.url}/chunks/10", max_image_bytes=1000)) == 1000


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip", "secret"])
async def test_compressed_bodies(site: Site, encoding: str) -> None:
    error = await failure(f"{site.url}/encoded/{encoding}")
    assert isinstance(error, ImageFetchFailed)
    assert "Content-Encoding" in error.message


@pytest.mark.parametrize(
    "answer",
    [b"", b"SSH-2.0-OpenSSH_9\r\n", b"secret", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
     b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n", b"HTTP/1.1 abc OK\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b"\0" * 1000],
)  # fmt: skip
async def test_servers_that_speak_no_http(answer: bytes) -> None:
    async with raw_server(answer) as url:
        assert isinstance(await failure(url), ImageFetchFailed)


@pytest.mark.parametrize("location", [b"", b"http://[::1", b"\xff\xfe", b"http://a:b@example.com/", b"mailto:a@b"])
async def test_bad_redirects(location: bytes) -> None:
    async with raw_server(b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\n\r\n") as url:
        assert isinstance(await failure(url), ImageUrlRefused | ImageFetchFailed)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"])
async def test_silence_meets_the_deadline(start: bytes) -> None:
    async with raw_server(start, keeps_open=True) as url:
        error = await failure(url, fetch_timeout_s=0.2)
    assert isinstance(error, ImageFetchFailed)
    assert "within 0.2 s" in error.message


async def test_a_drip_meets_the_deadline(site: Site) -> None:
    assert "within 0.2 s" in (await failure(f"{site.url}/drip", fetch_timeout_s=0.2)).message


async def test_slow_name_resolution_meets_the_deadline() -> None:
    class Slow(Answers):
        async def resolve(self, *_: Any, **__: Any) -> list[ResolveResult]:
            await asyncio.sleep(3600)
            return []

    assert "within 0.2 s" in (await failure("http://slow.example/", Slow([]), fetch_timeout_s=0.2)).message


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = await failure(f"http://127.0.0.1:{taken.getsockname()[1]}/")
    assert isinstance(error, ImageFetchFailed)
    assert "no connection" in error.message


async def test_an_unknown_name() -> None:
    class Unknown(Answers):
        async def resolve(self, *_: Any, **__: Any) -> list[ResolveResult]:
            raise OSError("secret resolver text")

    error = await failure("http://nowhere.example/", Unknown([]))
    assert isinstance(error, ImageFetchFailed)
    assert "can't be resolved" in error.message


async def test_a_name_too_long_for_dns() -> None:
    assert "can't be resolved" in (await failure(f"http://{'a' * 64}.example/")).message


async def test_cancelling_closes_the_connection() -> None:
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            pass
        writer.close()
        await writer.wait_closed()
        gone.set()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    task = asyncio.create_task(fetch(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.wait_for(gone.wait(), 20)
    server.close()


# --- TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for images.example, with its key."""
    path = tmp_path / "tls.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-days", "1", "-subj", "/CN=images.example", "-addext", "subjectAltName=DNS:images.example",
               "-keyout", str(path), "-out", f"{path}.crt"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.fixture
async def secure(certificate: Path) -> AsyncIterator[Site]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with running(tls=context) as site:
        yield site


async def test_a_certificate_nobody_signed_is_refused(secure: Site) -> None:
    error = await failure(f"https://images.example:{secure.port}/image.png", Answers(["127.0.0.1"]))
    assert isinstance(error, ImageFetchFailed)
    assert "TLS certificate" in error.message
    assert not secure.requests


@pytest.fixture
def _trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = ssl.create_default_context(cafile=f"{certificate}.crt")
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", context)


@pytest.mark.usefixtures("_trusted")
async def test_tls_is_checked_for_the_name_and_not_the_address(secure: Site) -> None:
    url = f"https://images.example:{secure.port}/image.png"
    assert await fetch(url, Answers(["127.0.0.1"])) == IMAGE
    assert secure.requests[0].host == f"images.example:{secure.port}"
    error = await failure(url.replace("images", "other"), Answers(["127.0.0.1"]))
    assert "TLS certificate" in error.message


@pytest.mark.usefixtures("_trusted")
async def test_a_redirect_from_https_to_http_is_refused(secure: Site, site: Site) -> None:
    url = f"https://images.example:{secure.port}/to?at={site.url}/image.png"
    error = await failure(url, Answers(["127.0.0.1"]))
    assert isinstance(error, ImageUrlRefused)
    assert "stays on https" in error.message
    assert not site.requests

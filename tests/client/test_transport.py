"""The client's connections against real sockets: what never was, what broke, and what took too long."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import httpx
import pytest

from serve_app.client.api import ApiClient
from serve_app.client.errors import BrokenOff, Unreachable
from serve_app.client.transport import Transport

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[str]:
    tasks = set[asyncio.Task[None]]()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        with suppress(asyncio.IncompleteReadError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        server.close()
        await asyncio.wait([*tasks, asyncio.create_task(asyncio.sleep(0))])


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head + (await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b"")


async def test_a_refused_connection_is_no_service() -> None:
    async with listening(lambda reader, writer: asyncio.sleep(0)) as url:
        pass
    async with ApiClient(url) as client:
        with pytest.raises(Unreachable, match=r"No service answers at .*: start one"):
            await client.get("/v1/models")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 2", HEAD + b"content-length: 100\r\n\r\n{", b"what\r\n\r\n"])
async def test_a_connection_that_breaks_was_there(answer: bytes) -> None:
    """Another try may caption the image a second time, so it isn't as if nothing had been sent."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await writer.drain()

    async with listening(serve) as url, ApiClient(url) as client:
        with pytest.raises(BrokenOff, match="broke"):
            await client.caption({}, b"image")


async def test_a_silent_service_is_told_as_one_that_took_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.client.api._TIMEOUT", httpx.Timeout(0.3, pool=None))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()  # until the client has gone

    async with listening(serve) as url, ApiClient(url) as client:
        with pytest.raises(BrokenOff, match="took longer"):
            await client.caption({}, b"image")


async def test_hundreds_of_images_are_on_their_way_at_once_and_each_is_whole() -> None:
    num_open, are_all_open = 0, asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_open
        num_open += 1
        if num_open == 300:
            are_all_open.set()
        while True:
            request = await read_request(reader)
            await are_all_open.wait()
            body = b'{"size": %d, "number": %d}' % (request.count(b"\xff"), int(request.split(b"<")[1]))
            writer.write(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)

    async def send(client: ApiClient, number: int) -> None:
        answer = await client.caption({"style": "tags"}, b"<%d<" % number + b"\xff" * (number * 100))
        assert answer == {"size": number * 100, "number": number}

    async with listening(serve) as url, ApiClient(url, num_connections=300) as client:
        await asyncio.gather(*(send(client, number) for number in range(600)))
    assert num_open == 300


@pytest.mark.parametrize(("environment", "is_direct"), [({}, True), ({"HTTP_PROXY": "http://127.0.0.1:9"}, False)])
async def test_a_proxy_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], is_direct: bool
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    async with ApiClient("http://models.example") as client:
        assert isinstance(client._http._transport, Transport) == is_direct

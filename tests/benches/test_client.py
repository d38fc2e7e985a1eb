"""The serving benchmark's own client against a server that answers well and badly."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from benchmarks.serving.client import Calls, run_closed, run_open
from benchmarks.serving.timing import Request
from benchmarks.serving.workloads import Load


def _event(text: str | None, **more: Any) -> bytes:
    choices = [] if text is None else [{"delta": {"content": text}}]
    return f"data: {json.dumps({'choices': choices, **more})}\n\n".encode()


def _usage(num_tokens: int) -> dict[str, Any]:
    return {"usage": {"completion_tokens": num_tokens}}


STREAMS: dict[str, list[bytes]] = {
    "well": [_event("a "), _event("b "), _event("c"), _event(None, **_usage(3)), b"data: [DONE]\n\n"],
    "joined": [_event("a ") + _event("b ") + _event("c")[:9], _event("c")[9:], _event(None, **_usage(3))],
    "with a ping": [b": ping\n\n", _event("a "), _event("b "), _event("c", **_usage(3))],
    "too short": [_event("a "), _event("b"), _event(None, **_usage(2))],
    "with an error": [_event("a "), b'data: {"error": {"message": "the engine failed"}}\n\n'],
    "without an end": [_event("a "), _event("b "), _event("c")],
}


async def _answer(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    kind = body["messages"][0]["content"]
    if kind == "busy":
        return web.json_response({"error": "busy"}, status=503)
    if not body["stream"]:
        message = {"message": {"content": "a b c"}}
        return web.json_response({"choices": [message], **_usage(3)})
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for piece in STREAMS[kind]:
        await response.write(piece)
        await asyncio.sleep(0.001)
    return response


@asynccontextmanager
async def _server() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", _answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def ask(kinds: Sequence[str], num_clients: int = 1, *, is_streamed: bool = True) -> list[Request]:
    async with _server() as address:
        load = Load("tiny", num_clients, len(kinds), num_tokens=3, is_streamed=is_streamed)
        return await run_closed(Calls(load, address, kinds, None).take(len(kinds)), num_clients)


async def test_tokens_are_counted_as_the_server_says_and_timed_as_they_come() -> None:
    for kind in ("well", "joined", "with a ping"):
        (request,) = await ask([kind])
        assert request.failure is None, kind
        assert request.answer == "a b c"
        assert len(request.event_times_s) == 3
        assert request.begun_s < request.event_times_s[0] <= request.ended_s == request.event_times_s[-1]


async def test_answers_that_come_whole_are_one_event() -> None:
    (request,) = await ask(["well"], is_streamed=False)
    assert (request.failure, request.answer, len(request.event_times_s)) == (None, "a b c", 1)


async def test_whatever_goes_wrong_is_that_requests_failure() -> None:
    found = await ask(["too short", "busy", "with an error", "without an end", "well"])
    reasons = [request.failure for request in found]
    assert reasons[0] == "2 tokens instead of 3"
    assert reasons[1] is not None
    assert reasons[1].startswith("HTTP 503")
    assert reasons[2] is not None
    assert "the engine failed" in reasons[2]
    assert reasons[3] == "an empty answer"
    assert reasons[4] is None


async def test_a_server_that_is_not_there_is_a_failure_too() -> None:
    async with _server() as address:
        (call,) = Calls(Load("tiny", 1, 1), address, ["well"], None).take(1)
    (request,) = await run_closed([call], 1)
    assert request.failure is not None


async def test_clients_share_the_requests() -> None:
    found = await ask(["well", "too short"] * 10, num_clients=4)
    assert [request.failure for request in found] == [None, "2 tokens instead of 3"] * 10  # in the order of the calls


async def test_requests_come_by_themselves_at_a_rate() -> None:
    async with _server() as address:
        calls = Calls(Load("tiny", 1, 30, num_tokens=3), address, ["well", "busy"], None).take(30)
        found = await run_open(calls, rate_per_s=500)
    assert [request.failure is None for request in found] == [True, False] * 15
    begun = [request.begun_s for request in found]
    assert begun == sorted(begun)

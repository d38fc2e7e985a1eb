"""What is said in a request's place by Ray Serve's servers: in the API's shape, and nothing else is touched."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from ray.serve._private.http_util import (
    RequestIdMiddleware,
    _apply_middlewares,
    convert_object_to_asgi_messages,
    validate_http_proxy_callback_return,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.config.serve_settings import within
from serve_app.dialects.tgi.dialect import PATH_ENDS, TGI
from serve_app.exchange.exchange import Exchange
from serve_app.ingress.routes import ROUTES
from serve_app.ingress.stand_in import middlewares
from serve_app.metrics.registry import Metrics
from tests.bare_lane import bare_lane

CHAT = "/v1/chat/completions"


async def dead(scope: Scope, receive: Receive, send: Send) -> None:
    """Ray Serve's proxy, whose replica died: it returns and has said nothing."""


def says(text: str, status: int) -> ASGIApp:
    """Ray Serve, with its own plain words."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in convert_object_to_asgi_messages(text, status_code=status):
            await send(message)

    return app


async def ask(app: ASGIApp, path: str = CHAT, *ids: str) -> httpx.Response:
    """Through the middlewares, put on as Ray Serve does it."""
    wrapped = _apply_middlewares(app, validate_http_proxy_callback_return(middlewares()))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(wrapped), base_url="http://it") as client:
        return await client.post(path, headers=[("x-request-id", sent) for sent in ids or ("mine",)])


SAID: dict[str, tuple[ASGIApp, int, str]] = {
    "a process that died": (dead, 503, "replica_died"),
    "its time-out": (says("Request x timed out after 3.0s.", 408), 504, "deadline_exceeded"),
    "its bound": (says("Request dropped due to backpressure", 503), 503, "overloaded"),
    "its bound, as a 429": (says("Request dropped due to backpressure", 429), 503, "overloaded"),
}


@pytest.mark.parametrize(("app", "status", "code"), SAID.values(), ids=SAID)
async def test_it_is_said_in_the_api_s_shape(app: ASGIApp, status: int, code: str) -> None:
    answer = await ask(app)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.get_list("x-request-id") == ["mine"]
    if code == "deadline_exceeded":
        assert answer.headers["x-should-retry"] == "false"
    else:
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (["trace:1234"], "trace:1234"),
        (["Root=1-5759e988-bd86"], "Root=1-5759e988-bd86"),
        (["a b"], None),
        (["<script>"], None),
        (["a" * 129], None),
        ([""], None),
        (["one", "two"], "one"),
    ],
)
async def test_a_request_has_one_id_before_ray_serve_and_behind_it(sent: list[str], expected: str | None) -> None:
    """Its middleware repeats whatever came in: what the service can't use must not get there."""
    behind = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, bare_lane(Metrics(CollectorRegistry(), [])))
        behind.append(exchange.id)
        await exchange.send_json({})

    answer = await ask(app, CHAT, *sent)
    assert answer.headers.get_list("x-request-id") == behind
    assert behind == [expected] if expected else behind[0].isalnum()


async def test_tgi_s_clients_are_told_in_theirs() -> None:
    answer = await ask(dead, "/models/demo/generate")
    assert (answer.status_code, answer.json()["error_type"]) == (424, "generation")
    tgi_paths = {route.path.strip("/") for route in ROUTES if route.dialect is TGI}
    assert tgi_paths - {""} == PATH_ENDS  # else its errors have OpenAI's shape


@pytest.mark.parametrize(
    ("app", "path", "status", "text"),
    [
        (says("success", 200), "/-/healthz", 200, "success"),
        (says("draining", 503), "/-/healthz", 503, "draining"),
        (says("Path '/nowhere' not found.", 404), "/nowhere", 404, "Path '/nowhere' not found."),
        (says("some text", 200), "/metrics", 200, "some text"),
    ],
)
async def test_what_is_well_said_stays(app: ASGIApp, path: str, status: int, text: str) -> None:
    answer = await ask(app, path)
    assert (answer.status_code, answer.text) == (status, text)


async def test_our_own_answers_pass_as_they_are() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = json.dumps({"error": {"code": "overloaded"}}).encode()
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"7")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        for byte in body:
            await send({"type": "http.response.body", "body": bytes([byte]), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    answer = await ask(app)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.json() == {"error": {"code": "overloaded"}}


async def test_a_stream_that_breaks_off_is_not_said_to_be_whole() -> None:
    """Nothing is added where an answer had begun: its missing end says it."""
    sent: list[Message] = []

    async def begun(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    middleware, _ = middlewares()
    make: Callable[[ASGIApp], Any] = middleware.cls
    call: Coroutine[Any, Any, None] = make(RequestIdMiddleware(begun))(
        {"type": "http", "path": CHAT, "headers": []}, receive, send
    )
    await call
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[-1]["more_body"]


def test_the_proxy_imports_no_engine_for_it() -> None:
    absent = "{'ray', 'torch', 'transformers', 'PIL'}"
    code = f"import sys, serve_app.ingress.stand_in\nassert not {absent} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(("of_serve_s", "ours_s"), [(600, 597.5), (10, 7.5), (2, 1.5)])
def test_our_deadline_comes_before_ray_serve_s(of_serve_s: float, ours_s: float) -> None:
    assert within(of_serve_s) == ours_s

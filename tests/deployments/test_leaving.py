"""What ends a request before its answer does, in any order: it is counted once and has its one line in the log."""

import asyncio
import logging
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry
from starlette.types import Message

from serve_app.errors import EngineFailed, ReplicaDied
from serve_app.exchange.body import Body
from serve_app.exchange.dialect import SERVICE
from serve_app.exchange.endpoint import Endpoint
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.lane import Lane
from serve_app.exchange.route import Route
from serve_app.metrics.registry import Metrics
from tests.bare_lane import bare_lane
from tests.own_lane import MODEL

SCOPE = {"type": "http", "method": "POST", "path": "/x", "headers": [(b"x-request-id", b"id-1")], "query_string": b""}
ENDS: dict[str, tuple[list[str], str]] = {
    "it leaves": (["leave"], "client_left"),
    "Ray Serve gives it up": (["give up"], "client_left"),
    "we see it first": (["leave", "give up"], "client_left"),
    "Ray Serve sees it first": (["give up", "leave"], "client_left"),
    "Ray Serve tells twice": (["give up", "give up"], "client_left"),
    "it calls off": (["call off"], "request_cancelled"),
    "it calls off and leaves": (["call off", "leave"], "request_cancelled"),
    "it calls off and is given up": (["call off", "give up"], "request_cancelled"),
    "it leaves and calls off": (["leave", "call off"], "client_left"),
}


class Request:
    """One request at an endpoint whose handler reads the body, waits, and takes its time to clean up."""

    def __init__(self, lane: Lane, clean_up_s: float, error: Exception | None) -> None:
        self._lane = lane
        self._clean_up_s = clean_up_s
        self._error = error
        self._gone = asyncio.Event()
        self._body = [b"{}"]
        self.has_begun = asyncio.Event()
        self.sent: list[Message] = []
        route = Route("POST", "/x", self._handle, SERVICE, body=Body)
        self.task = asyncio.create_task(Endpoint(route, lane)(SCOPE, self._receive, self._send))

    async def end(self, how: str) -> None:
        if how == "leave":
            self._gone.set()
        elif how == "give up":
            self.task.cancel()
        else:
            self._lane.running.cancel("id-1", None)

    async def _handle(self, exchange: Exchange) -> None:
        await exchange.read_body()
        self.has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(self._clean_up_s)
            if self._error is not None:
                raise self._error

    async def _receive(self) -> Message:
        if self._body:
            return {"type": "http.request", "body": self._body.pop()}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        await asyncio.sleep(0)
        self.sent.append(message)


def outcomes(registry: CollectorRegistry) -> dict[str, float]:
    return {
        sample.labels["outcome"]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "serve_app_requests_total"
    }


@pytest.mark.parametrize("error", [None, ReplicaDied("it died"), EngineFailed("it failed")])
@pytest.mark.parametrize("clean_up_s", [0.0, 0.05], ids=["quick", "slow"])
@pytest.mark.parametrize(("ends", "outcome"), ENDS.values(), ids=ENDS)
async def test_whatever_ends_it_is_counted_and_logged_once(
    ends: Sequence[str],
    outcome: str,
    clean_up_s: float,
    error: Exception | None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where its end makes something fail: a call that is cancelled may look like a replica that died."""
    caplog.set_level(logging.INFO, "serve_app")
    monkeypatch.setattr(logging.getLogger("serve_app"), "propagate", True)
    registry = CollectorRegistry()
    request = Request(bare_lane(Metrics(registry, [MODEL])), clean_up_s, error)
    await request.has_begun.wait()
    for how in ends:
        await request.end(how)
        await asyncio.sleep(0.01)  # not a wait for anything: a second cause comes before, in or after the clean-up
    await asyncio.wait([request.task])
    assert "give up" in ends or not request.task.cancelled()
    [line] = [record.getMessage() for record in caplog.records if record.getMessage().startswith("request id=")]
    assert f"outcome={outcome} " in line
    assert outcomes(registry) == {outcome: 1}

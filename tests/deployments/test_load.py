"""Many requests at once: each gets its own right answer, and a client that leaves frees its place."""

import asyncio
import time
from base64 import b64encode
from typing import Any

import httpx
import pytest

from tests.drawings import png
from tests.mixed_load import mixed_request
from tests.service import RunningService

pytestmark = pytest.mark.cluster

NUM_REQUESTS = 64


async def test_64_mixed_requests_each_get_their_own_answer(service: RunningService) -> None:
    async with httpx.AsyncClient(base_url=service.url, timeout=120, trust_env=False) as client:
        outcomes = await asyncio.gather(*(mixed_request(client, number) for number in range(NUM_REQUESTS)))
    assert [outcome for outcome in outcomes if outcome != "right"] == []


async def test_a_client_that_leaves_stops_the_engine(service: RunningService) -> None:
    def wasted(summary: dict[str, Any]) -> int:
        return int(summary["models"]["script"]["tokens"]["wasted"])

    async with httpx.AsyncClient(base_url=service.url, timeout=30, trust_env=False) as client:
        before = wasted((await client.get("/metrics/summary")).json())
        body = {"model": "script", "stream": True, "messages": [{"role": "user", "content": "!tokens 100000"}]}
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.aiter_lines()
            for _ in range(5):
                await anext(lines)
        deadline = time.monotonic() + 30
        seen = [before]
        while time.monotonic() < deadline and (len(seen) < 4 or seen[-1] == before or len(set(seen[-3:])) > 1):
            await asyncio.sleep(1.5)
            seen.append(wasted((await client.get("/metrics/summary")).json()))
        assert before < seen[-1] < before + 50_000
        assert seen[-1] == seen[-2] == seen[-3]


async def test_one_id_finds_a_request_in_the_logs_of_both_processes(service: RunningService) -> None:
    """And says which replica answered; nothing of what was said stands there."""
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "!echo secretword"}]}
    caption: dict[str, Any] = {"image": b64encode(png("red", "circle")).decode(), "prompt": "secretword"}
    asked = {
        "found-chat": ("/v1/chat/completions", chat),
        "found-stream": ("/v1/chat/completions", chat | {"stream": True}),
        "found-caption": ("/v1/captions", caption),
    }
    async with httpx.AsyncClient(base_url=service.url, timeout=60, trust_env=False) as client:
        for request_id, (path, body) in asked.items():
            answer = await client.post(path, json={"model": "demo"} | body, headers={"x-request-id": request_id})
            assert answer.status_code == 200, answer.text
    lines = service.log().splitlines()
    for request_id in asked:
        [told] = [line for line in lines if f" request id={request_id} " in line]
        [made] = [line for line in lines if f" generation id={request_id}" in line]
        assert " replica=ingress/" in told
        assert " replica=demo/" in made
        assert "outcome=ok" in made
    assert "secretword" not in service.log()

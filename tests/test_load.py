"""Many requests at once: each gets its own right answer, and a client that leaves frees its place."""

import asyncio
import time
from typing import Any

import httpx
import pytest

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

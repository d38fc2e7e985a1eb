"""Many requests at once: each gets its own right answer, and a client that leaves frees its place."""

import asyncio
import json
import random
import time
from typing import Any

import httpx
import pytest

from tests.pictures import COLORS, SHAPES, b64, data_uri, png, says
from tests.service import RunningService

pytestmark = pytest.mark.cluster

NUM_REQUESTS = 64


async def caption(client: httpx.AsyncClient, color: str, shape: str, size: tuple[int, int]) -> None:
    response = await client.post("/v1/captions", json={"image": b64(png(color, shape, size))})
    assert response.status_code == 200, response.text
    assert says(response.json()["data"][0]["caption"], color, shape), (color, shape, response.text)


async def upload(client: httpx.AsyncClient, color: str, shape: str, size: tuple[int, int]) -> None:
    response = await client.post(
        "/v1/captions", files={"image": png(color, shape, size)}, data={"stream": "true", "style": "tags"}
    )
    *events, done = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert done == "[DONE]"
    assert says(json.loads(events[-1])["caption"], color, shape), (color, shape, events[-1])


async def ask(client: httpx.AsyncClient, color: str, shape: str, size: tuple[int, int], stream: bool) -> None:
    picture = {"type": "image_url", "image_url": {"url": data_uri(png(color, shape, size))}}
    question = {"type": "text", "text": "What is in this picture?"}
    body = {"model": "demo", "stream": stream, "messages": [{"role": "user", "content": [picture, question]}]}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    if stream:
        *events, done = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
        assert done == "[DONE]"
        text = "".join(json.loads(e)["choices"][0]["delta"].get("content", "") for e in events)
    else:
        text = response.json()["choices"][0]["message"]["content"]
    assert says(text, color, shape), (color, shape, text)


async def greet(client: httpx.AsyncClient, word: str) -> None:
    body = {"model": "script", "messages": [{"role": "user", "content": f"!echo {word}"}]}
    response = await client.post("/v1/chat/completions", json=body)
    assert response.json()["choices"][0]["message"]["content"].strip() == word


def mixed_requests(client: httpx.AsyncClient) -> list["asyncio.Task[None]"]:
    """As many requests as stated, of every kind, in an order that is random but the same each time."""
    rng = random.Random(7)
    tasks = []
    for number in range(NUM_REQUESTS):
        color, shape = rng.choice(sorted(COLORS)), rng.choice(SHAPES)
        size = (rng.choice((96, 200, 320)), rng.choice((120, 240)))
        kind = number % 5
        if kind == 0:
            call = caption(client, color, shape, size)
        elif kind == 1:
            call = upload(client, color, shape, size)
        elif kind in (2, 3):
            call = ask(client, color, shape, size, stream=kind == 3)
        else:
            call = greet(client, f"word{number}")
        tasks.append(asyncio.create_task(call))
    return tasks


async def test_64_mixed_requests_each_get_their_own_answer(service: RunningService) -> None:
    async with httpx.AsyncClient(base_url=service.url, timeout=120, trust_env=False) as client:
        await asyncio.gather(*mixed_requests(client))


async def test_a_client_that_leaves_stops_the_engine(service: RunningService) -> None:
    def wasted(summary: dict[str, Any]) -> int:
        return int(summary["models"]["script"]["tokens"]["wasted"])

    async with httpx.AsyncClient(base_url=service.url, timeout=30, trust_env=False) as client:
        before = wasted((await client.get("/metrics/summary")).json())
        body = {
            "model": "script",
            "stream": True,
            "messages": [{"role": "user", "content": "!tokens 100000"}],
        }
        async with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.aiter_lines()
            for _ in range(5):
                await anext(lines)
        deadline = time.monotonic() + 30
        settled: list[int] = []
        while time.monotonic() < deadline and (
            len(settled) < 3 or len(set(settled[-3:])) > 1 or settled[-1] == before
        ):
            await asyncio.sleep(1.5)
            settled.append(wasted((await client.get("/metrics/summary")).json()))
        assert before < settled[-1] < before + 50_000
        assert settled[-1] == settled[-2] == settled[-3]

"""Many streams at once, slow readers and leaving ones among them, and a replica killed in the middle.

Every answer's tokens are its own and numbered, so that one that is lost, doubled, out of order or another request's
is seen. Once with Ray Serve's own proxy and once with HAProxy.
"""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import psutil
import pytest

from tests.drawings import data_uri, png
from tests.service import RunningService, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_STREAMS = 256
SLOW_EVERY, LEAVING_EVERY = 8, 9
MAX_UNSENT_BYTES = 500_000
NUM_STUCK = 8
NUM_LEAVING = 20
DEADLINE_S = 120.0
PROXIES = {
    "ray": {},
    "haproxy": {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"},
}


def model(name: str, **engine_args: Any) -> dict[str, Any]:
    args = {
        "source": "none", "engine": "scripted", "num_cpus": 0.1, "max_batch_size": NUM_STREAMS,
        "autoscaling": {"min_replicas": 2, "max_replicas": 2}, "engine_args": engine_args,
        "http": {"max_unsent_bytes": MAX_UNSENT_BYTES},
    }  # fmt: skip
    return {"name": name, "import_path": "serve_app.app:build_model", "route_prefix": f"/models/{name}", "args": args}


CONFIG = {
    "proxy_location": "HeadOnly",
    "applications": [
        model("paced", tokens_per_s=40),
        model("rapid", tokens_per_s=0),
        {
            "name": "ingress", "import_path": "serve_app.app:build_ingress", "route_prefix": "/",
            "args": {"num_cpus": 0.1, "max_unsent_bytes": MAX_UNSENT_BYTES},
            "deployments": [{"name": "Ingress", "user_config": {"models": ["paced", "rapid"]}}],
        },
        {"name": "metrics", "import_path": "serve_app.app:build_metrics", "route_prefix": "/metrics", "args": {}},
    ],
}  # fmt: skip


@pytest.fixture(scope="module", params=list(PROXIES))
def streams(request: pytest.FixtureRequest) -> Iterator[tuple[str, RunningService]]:
    with serving(CONFIG, env=PROXIES[request.param]) as service:
        yield request.param, service


def client_of(service: RunningService) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=service.url, timeout=DEADLINE_S, trust_env=False, limits=limits)


async def read(
    client: httpx.AsyncClient, number: int, lane: str, num_words: int = 30, begun: set[int] | None = None
) -> tuple[list[str], str]:
    """The tokens of stream `number`, and how it ended: `done`, `left`, `broken`, or an error's code."""
    wanted = words(number, num_words)
    body = {"model": "paced", "stream": True, "messages": [{"role": "user", "content": f"!echo {' '.join(wanted)}"}]}
    got: list[str] = []
    with suppress(httpx.RemoteProtocolError):
        return got, await _read_into(got, client, f"{lane}/v1/chat/completions", body, number, begun)
    return got, "broken"


async def _read_into(
    got: list[str], client: httpx.AsyncClient, path: str, body: dict[str, Any], number: int, begun: set[int] | None
) -> str:
    async with client.stream("POST", path, json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line == "data: [DONE]":
                return "done"
            if not line:
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                code: str = event["error"]["code"]
                return code
            got += event["choices"][0]["delta"].get("content", "").split()
            if begun is not None and got:
                begun.add(number)
            if number % LEAVING_EVERY == 1 and len(got) > 10:
                return "left"
            if number % SLOW_EVERY == 2:
                await asyncio.sleep(0.1)
    return "cut short"


def words(number: int, num_words: int = 30) -> list[str]:
    return [f"r{number}w{index}" for index in range(num_words + number % 50)]


def replicas(service: RunningService, name: str) -> list[psutil.Process]:
    found = psutil.Process(service.process.pid).children(recursive=True)
    return [process for process in found if f"ServeReplica:{name}:" in " ".join(process.cmdline())]


@pytest.mark.parametrize("lane", ["", "/models/rapid"])
async def test_what_is_larger_than_a_grpc_message_arrives_whole(
    streams: tuple[str, RunningService], lane: str
) -> None:
    """Pixels, a prompt, and an answer of more than the 4 MiB that Ray Serve's replicas take by default."""
    _, service = streams
    image = {"type": "image_url", "image_url": {"url": data_uri(png("red", "circle", size=(3000, 2000)))}}
    prompt = {"type": "text", "text": "!echo " + "word " * 1_000_000}
    bodies: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": [image, {"type": "text", "text": "!echo one two"}]}]},
        {"messages": [{"role": "user", "content": [prompt]}], "max_tokens": 2},
    ]
    async with client_of(service) as client:
        for body in bodies:
            assert (await ask(client, lane, body))["usage"]["completion_tokens"] == 2
            answer = await client.post(f"{lane}/v1/chat/completions", json=body | {"model": "rapid", "stream": True})
            assert answer.text.endswith("data: [DONE]\n\n"), answer.text[-300:]
        answer_of_many = bodies[1] | {"max_tokens": 50_000, "logprobs": True}
        assert (await ask(client, lane, answer_of_many))["usage"]["completion_tokens"] == 50_000


async def ask(client: httpx.AsyncClient, lane: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(f"{lane}/v1/chat/completions", json=body | {"model": "rapid"})
    assert answer.status_code == 200, answer.text[:300]
    told: dict[str, Any] = answer.json()
    return told


@pytest.mark.parametrize("lane", ["", "/models/paced"])
async def test_no_token_is_lost_doubled_or_swapped(streams: tuple[str, RunningService], lane: str) -> None:
    _, service = streams
    async with client_of(service) as client:
        ended = await asyncio.gather(*(read(client, number, lane) for number in range(NUM_STREAMS)))
        for number, (got, how) in enumerate(ended):
            is_leaving = number % LEAVING_EVERY == 1
            assert how == ("left" if is_leaving else "done"), (number, how, got[-3:])
            assert got == words(number)[: len(got)] if is_leaving else got == words(number), number
        await expect_idle(client)


@pytest.mark.parametrize("lane", ["", "/models/paced"])
@pytest.mark.parametrize("kind", ["stream", "whole", "captions", "caption_stream"])
async def test_a_client_that_leaves_is_no_dead_replica(
    streams: tuple[str, RunningService], kind: str, lane: str
) -> None:
    """Whoever sees it first, Ray Serve or we: it is counted once, as what it is, and nobody is asked again."""
    _, service = streams
    async with client_of(service) as client:
        before = await outcomes(client)
        await asyncio.gather(*(leave(service, kind, lane, number) for number in range(NUM_LEAVING)))
        await expect_idle(client)
        gained: dict[str, float] = {}
        deadline = time.monotonic() + DEADLINE_S
        while sum(gained.values()) < NUM_LEAVING and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            now = await outcomes(client)
            gained = {name: now[name] - before.get(name, 0) for name in now if now[name] != before.get(name, 0)}
        assert gained == {"client_left": NUM_LEAVING}
    assert "trying again" not in service.log()
    of_ray_serve = [file.read_text(errors="replace") for file in service.temp_dir.rglob("*Ingress*.log")]
    assert of_ray_serve
    assert not any("InvalidStateError" in text for text in of_ray_serve)


async def leave(service: RunningService, kind: str, lane: str, number: int) -> None:
    """Ask for an answer that would take long, and hang up.

    All in one piece: HAProxy doesn't see a client leave that sent its body later than its head, until it answers.
    """
    body: dict[str, Any] = {"model": "paced", "max_tokens": 900}
    if kind in ("captions", "caption_stream"):
        path = f"{lane}/v1/captions"
        body |= {"images": [data_uri(png("red", "circle"))] * 2, "prompt": "!slow 60", "stream": kind != "captions"}
    else:
        path = f"{lane}/v1/chat/completions"
        asked = "!tokens 900" if kind == "stream" else "!slow 60"
        body |= {"messages": [{"role": "user", "content": asked}], "stream": kind == "stream"}
    data, url = json.dumps(body).encode(), httpx.URL(service.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    if kind == "stream" and number % 2:
        assert (await reader.read(100)).startswith(b"HTTP/1.1 200")
    else:
        await asyncio.sleep(0.5 + 0.07 * number)
    writer.close()
    await writer.wait_closed()


async def no_more_tokens(client: httpx.AsyncClient, name: str) -> None:
    """Wait until the model was seen to generate and then to have stopped; its replicas report every second."""
    pattern = rf'serve_app_tokens_total\{{.*kind="generated".*model="{name}".*\}} (\S+)'
    seen = 0.0
    async with asyncio.timeout(DEADLINE_S):
        while True:
            await asyncio.sleep(4)
            page = (await client.get("/metrics")).text
            num_tokens = sum(float(number) for number in re.findall(pattern, page))
            if num_tokens == seen > 0:
                return
            seen = num_tokens


async def outcomes(client: httpx.AsyncClient) -> dict[str, float]:
    """How many requests ended how, by `/metrics`."""
    counts = dict[str, float]()
    for line in (await client.get("/metrics")).text.splitlines():
        if found := re.fullmatch(r'serve_app_requests_total\{.*outcome="(\w+)".*\} (\S+)', line):
            counts[found[1]] = counts.get(found[1], 0.0) + float(found[2])
    return counts


async def test_a_killed_replica_ends_only_its_own_streams(streams: tuple[str, RunningService]) -> None:
    proxy, service = streams
    died = {"ray": "replica_died", "haproxy": "broken"}[proxy]  # HAProxy has no words of its own for what had begun
    async with client_of(service) as client:
        begun: set[int] = set()
        reading = asyncio.gather(*(read(client, number, "", 400, begun) for number in range(NUM_STREAMS)))
        while len(begun) < NUM_STREAMS // 2:
            assert not reading.done()
            await asyncio.sleep(0.1)
        os.kill(replicas(service, "paced")[0].pid, signal.SIGKILL)
        ended = await reading
        hows = [how for _, how in ended]
        for number, (got, how) in enumerate(ended):
            assert how in ("done", "left", died), (number, how)
            assert got == words(number, 400)[: len(got)], (number, how)
            assert how != "done" or got == words(number, 400), number
        assert 0 < hows.count(died) < NUM_STREAMS * 3 // 4, hows
        assert (await read(client, 0, ""))[1] == "done"
        await expect_idle(client)


async def test_a_client_that_never_reads_costs_bounded_memory(streams: tuple[str, RunningService]) -> None:
    proxy, service = streams
    writers = replicas(service, "ingress" if proxy == "ray" else "rapid")

    def num_bytes() -> int:
        return sum(writer.memory_info().rss for writer in writers)

    before = num_bytes()
    body = {"model": "rapid", "stream": True, "messages": [{"role": "user", "content": "!tokens 100000"}]}
    async with client_of(service) as client:
        stuck = [client.stream("POST", "/v1/chat/completions", json=body) for _ in range(NUM_STUCK)]
        responses = [await one.__aenter__() for one in stuck]
        quick = body | {"messages": [{"role": "user", "content": "!echo still here"}]}
        assert (await client.post("/v1/chat/completions", json=quick)).status_code == 200
        await no_more_tokens(client, "rapid")  # else a slow machine makes them only while they are read
        grown = num_bytes() - before
        assert grown < NUM_STUCK * (MAX_UNSENT_BYTES + 10_000_000) + 100_000_000, grown
        for response in responses:
            end = (await response.aread()).decode()[-1000:]
            # Ray Serve's own proxy reads on by itself, so there the client's slowness is the proxy's to bear.
            assert "client_too_slow" in end or (proxy == "ray" and end.endswith("data: [DONE]\n\n")), end
        for one in stuck:
            await one.__aexit__(None, None, None)
        await expect_idle(client)


async def expect_idle(client: httpx.AsyncClient) -> None:
    """No request is held any more."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        models = (await client.get("/metrics/summary")).json()["models"]
        if not any(told["in_flight"] or told["queued"] for told in models.values()):
            return
        await asyncio.sleep(0.3)
    raise AssertionError(f"requests are still in flight: {models}")

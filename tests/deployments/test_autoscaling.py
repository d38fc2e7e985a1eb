"""Replicas follow the load on a real Ray cluster: up, down, to zero and back, and no request is lost meanwhile."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service import RunningService, serving

pytestmark = pytest.mark.cluster

DEADLINE_S = 120.0  # generous: how fast it really is stands in benchmarks/LOG.md
NAMES = ["follower", "sleeper", "stuck", "pressed", "crowded"]
ENV = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
}


def model(name: str, autoscaling: dict[str, Any], **script: Any) -> dict[str, Any]:
    return {
        "name": name,
        "import_path": "serve_app.app:build_model",
        "route_prefix": None,
        "args": {
            "source": "none",
            "engine": "scripted",
            "num_cpus": 0.1,
            "tasks": ["chat"],
            "max_batch_size": 4,
            "max_queued_requests": 2000,
            "autoscaling": autoscaling,
            "engine_args": {"takes_images": False, **script},
        },
    }


def ingress(name: str, route_prefix: str, **limits: float) -> dict[str, Any]:
    return {
        "name": name,
        "import_path": "serve_app.app:build_ingress",
        "route_prefix": route_prefix,
        "args": {
            "num_cpus": 0.1,
            "max_ongoing_requests": 2000,
            "admission": {"max_waiting_requests": 2000},
            **limits,
        },
        "deployments": [{"name": "Ingress", "user_config": {"models": NAMES}}],
    }


CONFIG = {
    "proxy_location": "HeadOnly",
    "applications": [
        # 80 tokens at 40 a second: a request takes two seconds, and a replica is full with four of them
        model("follower", {"min_replicas": 1, "max_replicas": 3, "upscale_delay_s": 1, "downscale_delay_s": 4},
              tokens=80, tokens_per_s=40),
        # patient, so that the thousand are answered before a second replica would come
        model("sleeper", {"min_replicas": 0, "max_replicas": 3, "upscale_delay_s": 120, "downscale_delay_s": 3},
              start_s=3),
        model("stuck", {"min_replicas": 0, "max_replicas": 1}, start_s=600),
        # many requests are no reason for it: long prompts that wait are
        model("pressed", {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1000,
                          "target_waiting_tokens": 50, "upscale_delay_s": 1}, tokens=20, tokens_per_s=20, capacity=1),
        # five at a time reach its replica: only what waits in the ingress is more than the target
        model("crowded", {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 8, "upscale_delay_s": 1},
              tokens=20, tokens_per_s=20),
        ingress("ingress", "/", request_timeout_s=240),
        ingress("impatient", "/impatient", request_timeout_s=5),
        {"name": "metrics", "import_path": "serve_app.app:build_metrics", "route_prefix": "/metrics", "args": {}},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def scaling() -> Iterator[RunningService]:
    with serving(CONFIG, env=ENV) as running:
        yield running


@pytest.fixture
async def client(scaling: RunningService) -> Any:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=scaling.url, timeout=280, limits=limits, trust_env=False) as client:
        yield client


async def chat(client: httpx.AsyncClient, name: str, text: str = "hello", prefix: str = "") -> httpx.Response:
    body = {"model": name, "messages": [{"role": "user", "content": text}]}
    return await client.post(f"{prefix}/v1/chat/completions", json=body)


async def entry(client: httpx.AsyncClient, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (await client.get(f"/v1/models/{name}")).json()
    return found


async def seen_until(client: httpx.AsyncClient, name: str, num_replicas: int) -> list[int]:
    """The numbers of replicas that the model had, until it has this one."""
    deadline = time.monotonic() + DEADLINE_S
    seen: list[int] = []
    while not seen or seen[-1] != num_replicas:
        assert time.monotonic() < deadline, f"{name} never had {num_replicas} replicas: {seen}"
        now = (await entry(client, name))["replicas"]
        if not seen or seen[-1] != now:
            seen.append(now)
        await asyncio.sleep(0.2)
    return seen


class Load:
    """Clients that ask again as soon as they are answered."""

    def __init__(self, client: httpx.AsyncClient, name: str, num_clients: int, text: str = "hello") -> None:
        self._stop = False
        self.statuses: list[int] = []
        self._tasks = [asyncio.create_task(self._ask(client, name, text)) for _ in range(num_clients)]

    async def _ask(self, client: httpx.AsyncClient, name: str, text: str) -> None:
        while not self._stop:
            self.statuses.append((await chat(client, name, text)).status_code)

    async def end(self) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)


async def test_replicas_follow_the_load_up_and_down_without_a_lost_request(client: httpx.AsyncClient) -> None:
    load = Load(client, "follower", num_clients=20)
    up = await seen_until(client, "follower", 3)
    await asyncio.sleep(6)  # longer than the patience before a replica goes
    assert (await entry(client, "follower"))["replicas"] == 3, "steady load, yet a replica went"
    await load.end()
    down = await seen_until(client, "follower", 1)
    assert up == sorted(up), "it went back on its way up"
    assert down == sorted(down, reverse=True), "it came back on its way down"
    assert set(load.statuses) == {200}


async def test_a_model_at_zero_is_woken_once_by_a_thousand_requests(client: httpx.AsyncClient) -> None:
    await seen_until(client, "sleeper", 0)
    asleep = await entry(client, "sleeper")
    assert asleep["state"] == "scaled_to_zero"
    asking = asyncio.gather(*(chat(client, "sleeper", f"!echo {number}") for number in range(1000)))
    woken: set[int] = set()
    while not asking.done():
        woken.add((await entry(client, "sleeper"))["replicas"])
        await asyncio.sleep(0.2)
    answers = await asking
    assert {response.status_code for response in answers} == {200}, answers[-1].text
    texts = [response.json()["choices"][0]["message"]["content"] for response in answers]
    assert texts == [str(number) for number in range(1000)]
    assert woken <= {0, 1}, "one start answers them all"
    await seen_until(client, "sleeper", 0)  # idle, it sleeps again


async def test_requests_for_a_model_that_warms_up_too_long_are_told_so(client: httpx.AsyncClient) -> None:
    """Those that Ray Serve holds, and those that wait for their turn."""
    for response in await asyncio.gather(*(chat(client, "stuck", prefix="/impatient") for _ in range(20))):
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (503, "model_not_ready", "model")
        assert "warming up" in error["message"]
        assert int(response.headers["retry-after"]) > 0
    assert (await chat(client, "follower")).status_code == 200, "another model isn't affected"


async def test_prompts_that_wait_bring_a_replica_where_their_number_would_not(client: httpx.AsyncClient) -> None:
    load = Load(client, "pressed", num_clients=8, text="word " * 40)
    await seen_until(client, "pressed", 2)
    await load.end()
    assert set(load.statuses) == {200}


async def test_what_waits_in_the_ingress_brings_a_replica(client: httpx.AsyncClient) -> None:
    load = Load(client, "crowded", num_clients=16)
    await seen_until(client, "crowded", 2)
    summary = (await client.get("/metrics/summary")).json()["models"]["crowded"]
    await load.end()
    assert set(load.statuses) == {200}
    assert summary["waiting"] + summary["queued"] > 0
    assert summary["turn_seconds"]["ever"]["p50"] is not None

"""Processes that die under load: only what was in flight on them fails, and service is normal again soon.

The killed processes belong to this test's own cluster and are found through Ray's own list of actors.
"""

import asyncio
import os
import signal
import time
from collections import Counter

import httpx
import psutil
import pytest

from tests.pictures import b64, png, says
from tests.service import RunningService

pytestmark = pytest.mark.cluster

PICTURE = b64(png("red", "circle"))
RECOVERY_S = 60.0  # 30 s is promised; tests run on busy machines


def replica_pid(service: RunningService, deployment: str, application: str) -> int:
    """The one replica's process, below this service's own `serve-app up`; waits for one that is being started."""
    title = f"ServeReplica:{application}:{deployment}"
    deadline = time.monotonic() + RECOVERY_S
    while time.monotonic() < deadline:
        found = [p for p in psutil.Process(service.process.pid).children(recursive=True) if title in _name(p)]
        if len(found) == 1:
            pid: int = found[0].pid
            return pid
        time.sleep(0.2)
    raise AssertionError(f"no process, or several, named {title}")


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


async def load(client: httpx.AsyncClient, until: float, outcomes: Counter[str]) -> None:
    """One client that captions again and again; what it got is counted."""
    while time.monotonic() < until:
        try:
            response = await client.post("/v1/captions", json={"model": "demo", "image": PICTURE})
        except httpx.TransportError as exc:
            outcomes[type(exc).__name__] += 1
            continue
        if response.status_code != 200:
            outcomes[f"{response.status_code}"] += 1
        else:
            outcomes["right" if says(response.json()["data"][0]["caption"], "red", "circle") else "WRONG"] += 1


async def kill_under_load(service: RunningService, pid: int, num_clients: int = 8) -> Counter[str]:
    """Kill the process while clients ask; count their outcomes until some time after it is back."""
    outcomes: Counter[str] = Counter()
    async with httpx.AsyncClient(base_url=service.url, timeout=RECOVERY_S, trust_env=False) as client:
        clients = [asyncio.create_task(load(client, time.monotonic() + 12, outcomes)) for _ in range(num_clients)]
        await asyncio.sleep(2)
        os.kill(pid, signal.SIGKILL)
        await asyncio.gather(*clients)
    await asyncio.to_thread(service.wait_until_ready, RECOVERY_S)
    return outcomes


@pytest.mark.parametrize(
    ("deployment", "application"), [("Model", "demo"), ("Ingress", "ingress"), ("Metrics", "metrics")]
)
async def test_a_killed_process_costs_only_what_it_held(
    service: RunningService, deployment: str, application: str
) -> None:
    num_clients = 8
    outcomes = await kill_under_load(service, replica_pid(service, deployment, application), num_clients)
    failed = outcomes.total() - outcomes["right"]
    assert outcomes["WRONG"] == 0
    assert outcomes["right"] > 0, outcomes
    assert failed <= (num_clients if application != "metrics" else 0), outcomes
    after: Counter[str] = Counter()
    async with httpx.AsyncClient(base_url=service.url, timeout=RECOVERY_S, trust_env=False) as client:
        await load(client, time.monotonic() + 1, after)
    assert set(after) == {"right"}, after


async def test_a_replica_that_dies_in_mid_stream_ends_it_with_an_error(service: RunningService) -> None:
    body = {"model": "script", "stream": True, "messages": [{"role": "user", "content": "!tokens 100000"}]}
    async with (
        httpx.AsyncClient(base_url=service.url, timeout=RECOVERY_S, trust_env=False) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        lines = response.aiter_lines()
        await anext(lines)
        os.kill(replica_pid(service, "Model", "script"), signal.SIGKILL)
        rest = [line async for line in lines if line]
    assert '"code": "replica_died"' in rest[-1]
    assert "[DONE]" not in rest[-1]
    await asyncio.to_thread(service.wait_until_ready, RECOVERY_S)


async def test_a_replica_that_dies_before_its_first_token_costs_a_retry(service: RunningService) -> None:
    body = {"model": "script", "messages": [{"role": "user", "content": "!slow 3"}]}
    async with httpx.AsyncClient(base_url=service.url, timeout=RECOVERY_S, trust_env=False) as client:
        answer = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        await asyncio.sleep(1)
        os.kill(replica_pid(service, "Model", "script"), signal.SIGKILL)
        response = await answer
    assert response.status_code == 200, response.text
    await asyncio.to_thread(service.wait_until_ready, RECOVERY_S)

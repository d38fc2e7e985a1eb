"""How long until a service answers again after one of its processes is killed under load, and what that costs.

Starts a service of its own, puts 64 clients with mixed requests on it, kills one process with SIGKILL, and looks at
every request's begin, end and outcome. The floor is the time in which Ray Serve starts a replica: a new process
imports its libraries, and a model loads. Prints a table, then one line of JSON.

Run it from the repository: `python -m benchmarks.recovery`.
"""

import asyncio
import json
import os
import signal
import time
from dataclasses import dataclass
from itertools import count, pairwise

import httpx

from tests.conftest import CONFIG
from tests.deployments.test_faults import NUM_CLIENTS, replica_pid
from tests.mixed_load import mixed_request
from tests.service import RunningService, serving

SECONDS_BEFORE, SECONDS_AFTER = 4.0, 20.0
KILLED = (("Model", "demo"), ("Ingress", "ingress"), ("Metrics", "metrics"))


@dataclass(frozen=True, slots=True)
class Seen:
    """One request, as its client saw it; times in seconds of one clock."""

    begun_s: float
    ended_s: float
    outcome: str


async def _client(client: httpx.AsyncClient, first: int, until_s: float, seen: list[Seen]) -> None:
    for number in count(first, NUM_CLIENTS):
        begun_s = time.monotonic()
        outcome = await mixed_request(client, number)
        seen.append(Seen(begun_s, time.monotonic(), outcome))
        if time.monotonic() > until_s:
            return


async def _kill(service: RunningService, deployment: str, application: str) -> dict[str, float | int | str]:
    seen: list[Seen] = []
    until_s = time.monotonic() + SECONDS_BEFORE + SECONDS_AFTER
    limits = httpx.Limits(max_connections=NUM_CLIENTS)
    async with httpx.AsyncClient(base_url=service.url, timeout=90, trust_env=False, limits=limits) as client:
        clients = [asyncio.create_task(_client(client, n, until_s, seen)) for n in range(NUM_CLIENTS)]
        await asyncio.sleep(SECONDS_BEFORE)
        os.kill(replica_pid(service, deployment, application), signal.SIGKILL)
        killed_s = time.monotonic()
        await asyncio.gather(*clients)
    return _figures(f"{application}", seen, killed_s)


def _figures(killed: str, seen: list[Seen], killed_s: float) -> dict[str, float | int | str]:
    before = [s for s in seen if s.ended_s < killed_s]
    begun_after = [s for s in seen if s.begun_s > killed_s and s.outcome == "right"]
    return {
        "killed": killed,
        "requests": len(seen),
        "requests_per_s_before": round(len(before) / SECONDS_BEFORE, 1),
        "failed": sum(s.outcome != "right" for s in seen),
        "wrong": sum(s.outcome.startswith("wrong") for s in seen),
        "failed_begun_after": sum(s.begun_s > killed_s and s.outcome != "right" for s in seen),
        "slowest_begun_after_s": round(max((s.ended_s - s.begun_s for s in begun_after), default=0.0), 1),
        "longest_silence_s": round(_longest_silence(seen, killed_s), 1),
    }


def _longest_silence(seen: list[Seen], killed_s: float) -> float:
    """The longest time after the kill in which no request ended well."""
    ends = [killed_s, *sorted(s.ended_s for s in seen if s.outcome == "right" and s.ended_s > killed_s)]
    return max((after - before for before, after in pairwise(ends)), default=float("inf"))


def main() -> None:
    with serving(CONFIG) as service:
        rows = []
        for deployment, application in KILLED:
            service.wait_until_ready()
            rows.append(asyncio.run(_kill(service, deployment, application)))
    print(" | ".join(rows[0]))
    for row in rows:
        print(" | ".join(str(value) for value in row.values()))
    print(json.dumps({"clients": NUM_CLIENTS, "runs": rows}))


if __name__ == "__main__":
    main()

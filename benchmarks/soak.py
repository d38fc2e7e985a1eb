"""How a service stands minutes of everything at once: mixed traffic, clients that misbehave, processes that die.

Starts a service of its own, with keys, two scripted models (one has a direct lane), the demo model and two ingress
replicas, and kills one of its processes after the other. Every request must be accounted for; at the end nothing may
be in flight, and processes, file descriptors and memory must be about what they were. A connection may be lost only
while a killed ingress or proxy isn't back, and behind HAProxy (`--haproxy`) a replica that it led straight to. Prints
a table, then one line of JSON; exits with 1 where a promise broke.

Run it from the repository: `python -m benchmarks.soak --minutes 20`.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.soak_processes import (
    KILLED,
    LONG_LIVED,
    Bounds,
    Size,
    grown,
    processes,
    sizes,
    wait_until_replaced,
)
from benchmarks.soak_traffic import CHAT, ENDS, Client
from tests.service import RunningService, serving

KEYS: dict[str, dict[str, Any]] = {
    "alice": {},
    "bob": {"priority": 1},
    "carol": {},
    "few": {"requests_per_minute": 60, "tokens_per_minute": 6000},
    "root": {"admin": True},
}
NUM_CLIENTS = 12
WARM_UP_S = 8.0
PROGRESS_S, SAMPLE_S = 10.0, 5.0
REST_S = 40.0  # until nothing is in flight; a killed process's last word is forgotten after 10
BETWEEN_FAULTS_S = (1.0, 5.0)
GRACE_S = 1.5  # before a kill is recorded and after the service is ready, connections may still break
# Whose death may cut a connection, by the lane that it came to; HAProxy leads from the common address to lanes.
CUTS: dict[str, tuple[str, ...]] = {"": ("ingress:Ingress", "proxy"), "/models/script": ("script:Model", "proxy")}
CUTS_BEHIND_HAPROXY = CUTS | {"": (*CUTS[""], "script:Model")}


@dataclass(frozen=True, slots=True)
class Fault:
    """A process that was killed, and when the service was ready again; seconds since the start."""

    killed: str
    at_s: float
    ready_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """One request, as its client saw it."""

    kind: str
    lane: str
    outcome: str
    detail: str
    begun_s: float
    ended_s: float


@dataclass(slots=True)
class Run:
    """All that is seen of one soak."""

    started_at: float = field(default_factory=time.monotonic)
    num_begun: int = 0
    seen: list[Seen] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    samples: list[tuple[float, dict[str, Size]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cuts: dict[str, tuple[str, ...]] = field(default_factory=lambda: CUTS)

    def now_s(self) -> float:
        return time.monotonic() - self.started_at


def secret(name: str) -> str:
    return f"sa-soak-{name}"


def config(keys_file: Path) -> dict[str, Any]:
    http = {"keys": {"file": str(keys_file)}, "request_timeout_s": 30}

    def model(name: str, route: str | None, **args: Any) -> dict[str, Any]:
        return {"name": name, "import_path": "serve_app.app:build_model", "route_prefix": route, "args": args}

    scripted = {"source": "none", "engine": "scripted", "num_cpus": 0.1, "max_ongoing_requests": 200, "http": http}
    script = scripted | {"max_batch_size": 100, "engine_args": {"tokens_per_s": 100}}
    ingress = {"num_cpus": 0.1, "num_replicas": 2, **http}
    return {
        "proxy_location": "HeadOnly",
        "applications": [
            model("script", "/models/script", **script),
            model("plain", None, **script),
            model("demo", None, source="demo", engine="transformers", num_cpus=0.2),
            {"name": "ingress", "import_path": "serve_app.app:build_ingress", "route_prefix": "/", "args": ingress,
             "deployments": [{"name": "Ingress", "user_config": {"models": ["script", "plain", "demo"]}}]},
            {"name": "metrics", "import_path": "serve_app.app:build_metrics", "route_prefix": "/metrics",
             "args": {"keys": http["keys"]}},
        ],
    }  # fmt: skip


def write_keys(path: Path) -> None:
    entries = [
        {"name": name, "sha256": hashlib.sha256(secret(name).encode()).hexdigest(), **limits}
        for name, limits in KEYS.items()
    ]
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump({"keys": entries}))


async def drive(client: Client, run: Run, until_s: float) -> None:
    while run.now_s() < until_s:
        run.num_begun += 1
        begun_s = run.now_s()
        kind, end = await client.one()
        run.seen.append(Seen(kind, client.lane, end.outcome, end.detail, begun_s, run.now_s()))
        is_sent_away = end.outcome == "lost" or end.detail.startswith("429")
        await asyncio.sleep(1.0 if is_sent_away else client.rng.uniform(0.0, 0.1))


async def break_things(service: RunningService, run: Run, rng: random.Random, until_s: float) -> None:
    while run.now_s() < until_s:
        await asyncio.sleep(rng.uniform(*BETWEEN_FAULTS_S))
        role = rng.choice(KILLED)
        victims = (await asyncio.to_thread(processes, service)).get(role, [])
        if not victims:
            continue
        at_s = run.now_s()
        if role in ("script:Model", "plain:Model") and rng.random() < 0.5:
            await crash(service, role)
        else:
            os.kill(rng.choice(victims).pid, signal.SIGKILL)
        try:
            await asyncio.to_thread(wait_until_replaced, service, role, {process.pid for process in victims})
        except AssertionError as exc:
            run.problems.append(f"after {role} was killed at {at_s:.0f} s: {exc}")
        run.faults.append(Fault(role, round(at_s, 1), round(run.now_s(), 1)))


async def crash(service: RunningService, role: str) -> None:
    """Have the model's engine end its own process."""
    body = {"model": role.partition(":")[0], "messages": [{"role": "user", "content": "!crash"}]}
    headers = {"authorization": f"Bearer {secret('alice')}", "x-request-timeout": "5"}
    async with httpx.AsyncClient(base_url=service.url, trust_env=False, timeout=20) as http:
        with suppress(httpx.TransportError):
            await http.post(CHAT, json=body, headers=headers)


async def watch(service: RunningService, run: Run) -> None:
    """A sample each 5 s and a line each 10, for ever."""
    next_line_s = PROGRESS_S
    while True:
        await asyncio.sleep(SAMPLE_S)
        run.samples.append((run.now_s(), await asyncio.to_thread(sizes, service)))
        if run.now_s() >= next_line_s:
            next_line_s += PROGRESS_S
            ends = Counter(seen.outcome for seen in run.seen)
            told = " ".join(f"{end} {ends[end]}" for end in ENDS)
            last = f", last killed: {run.faults[-1].killed}" if run.faults else ""
            print(f"{run.now_s():5.0f} s: {told}; {len(run.faults)} faults{last}", flush=True)


async def soak(service: RunningService, run: Run, minutes: float, seed: int, bounds: Bounds) -> None:
    names = [name for name in KEYS if name != "root"]
    limits = httpx.Limits(max_connections=4 * NUM_CLIENTS)
    async with httpx.AsyncClient(base_url=service.url, trust_env=False, timeout=60, limits=limits) as http:
        clients = [Client(http, secret(names[n % len(names)]), seed * 1000 + n) for n in range(NUM_CLIENTS)]
        await asyncio.gather(*(drive(client, run, WARM_UP_S) for client in clients))
        await at_rest(http, run)
        before = await asyncio.to_thread(sizes, service)
        watcher = asyncio.create_task(watch(service, run))
        until_s = run.now_s() + 60 * minutes
        faults = break_things(service, run, random.Random(seed), until_s)
        await asyncio.gather(faults, *(drive(client, run, until_s) for client in clients))
        await at_rest(http, run)
        watcher.cancel()
        after = await asyncio.to_thread(sizes, service)
    run.samples = [(0.0, before), *run.samples, (run.now_s(), after)]
    run.problems += [*unaccounted(run), *grown(before, after, bounds)]


async def at_rest(http: httpx.AsyncClient, run: Run) -> None:
    """Until the sidecar counts nothing in flight."""
    headers = {"authorization": f"Bearer {secret('root')}"}
    told = "nothing"
    deadline = time.monotonic() + REST_S
    while time.monotonic() < deadline:
        await asyncio.sleep(1.5)  # processes report every second
        try:
            totals = (await http.get("/metrics/summary", headers=headers)).json()["totals"]
        except (httpx.TransportError, ValueError, KeyError):
            continue
        told = f"{totals['in_flight']} requests in flight and {totals['queued']} queued"
        if not totals["in_flight"] and not totals["queued"]:
            return
    run.problems.append(f"{REST_S:.0f} s after the last request ended, the sidecar tells {told}")


def explains(fault: Fault, lost: Seen, cuts: dict[str, tuple[str, ...]]) -> bool:
    overlaps = fault.at_s - GRACE_S < lost.ended_s and lost.begun_s < fault.ready_s + GRACE_S
    return overlaps and fault.killed in cuts[lost.lane]


def unaccounted(run: Run) -> list[str]:
    """What no fault explains."""
    problems = [f"{seen.kind} at {seen.begun_s:.1f} s: {seen.detail}" for seen in run.seen if seen.outcome == "wrong"]
    for seen in run.seen:
        if seen.outcome == "lost" and not any(explains(fault, seen, run.cuts) for fault in run.faults):
            problems.append(f"{seen.kind} from {seen.begun_s:.1f} to {seen.ended_s:.1f} s was lost: {seen.detail}")
    if len(run.seen) != run.num_begun:
        problems.append(f"{run.num_begun} requests were begun and {len(run.seen)} ended")
    return problems


def report(run: Run) -> dict[str, Any]:
    """Prints the tables; what the last line says."""
    by_kind = Counter((seen.kind, seen.outcome) for seen in run.seen)
    print(f"\n{'request':16}" + "".join(f"{end:>11}" for end in ENDS))
    for kind in sorted({kind for kind, _ in by_kind}):
        print(f"{kind:16}" + "".join(f"{by_kind[kind, end]:11}" for end in ENDS))
    (_, before), (_, after) = run.samples[0], run.samples[-1]
    print(f"\n{'role':16} processes  descriptors  megabytes, before → after")
    for role in sorted({*before, *after}):
        was, now = before.get(role, Size(0, 0, 0)), after.get(role, Size(0, 0, 0))
        print(f"{role:16} {was.processes} → {now.processes}  {was.descriptors} → {now.descriptors}  "
              f"{was.megabytes:.0f} → {now.megabytes:.0f}")  # fmt: skip
    for problem in run.problems:
        print(f"PROBLEM: {problem}")
    return {
        "seconds": round(run.now_s(), 1),
        "requests": run.num_begun,
        "ended": dict(Counter(seen.outcome for seen in run.seen)),
        "details": dict(Counter(f"{seen.outcome}: {seen.detail}" for seen in run.seen if seen.detail)),
        "faults": [asdict(fault) for fault in run.faults],
        "slowest_recovery_s": max((fault.ready_s - fault.at_s for fault in run.faults), default=0.0),
        "before": {role: asdict(size) for role, size in before.items()},
        "after": {role: asdict(size) for role, size in after.items()},
        "problems": run.problems,
    }


def plot(run: Run, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(10, 6), sharex=True, layout="constrained")
    for role in LONG_LIVED:
        points = [(at_s, found[role].megabytes) for at_s, found in run.samples if role in found]
        above.plot([at_s for at_s, _ in points], [megabytes for _, megabytes in points], label=role)
    above.set(ylabel="megabytes", title="Memory by role")
    above.legend(fontsize="small", ncols=4, loc="center")
    for end in ENDS:
        below.hist([seen.ended_s for seen in run.seen if seen.outcome == end], bins=60, histtype="step", label=end)
    for fault in run.faults:
        below.axvspan(fault.at_s, fault.ready_s, alpha=0.1, color="red")
    below.set(xlabel="seconds", ylabel="requests that ended")
    below.legend(fontsize="small", ncols=3)
    figure.savefig(path, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="where the plot is written, as PNG")
    parser.add_argument("--most-megabytes", type=float, default=Bounds.megabytes, help="that a role may grow by")
    parser.add_argument("--most-descriptors", type=int, default=Bounds.descriptors, help="that a role may gain")
    parser.add_argument("--most-processes", type=int, default=Bounds.processes, help="that may be more in all")
    parser.add_argument("--haproxy", action="store_true", help="behind HAProxy, which sends requests to lanes")
    given = parser.parse_args()
    bounds = Bounds(given.most_megabytes, given.most_descriptors, given.most_processes)
    with tempfile.TemporaryDirectory() as folder:
        write_keys(Path(folder) / "keys.yaml")
        with serving(config(Path(folder) / "keys.yaml"), options=["--haproxy"] * given.haproxy) as service:
            run = Run(cuts=CUTS_BEHIND_HAPROXY if given.haproxy else CUTS)
            asyncio.run(soak(service, run, given.minutes, given.seed, bounds))
    told = report(run)
    if given.plot:
        plot(run, given.plot)
    print(json.dumps(told))
    return 1 if run.problems else 0


if __name__ == "__main__":
    sys.exit(main())

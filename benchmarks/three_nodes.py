"""Ten minutes of mixed traffic on three nodes, one of which is killed and one model changed meanwhile.

Ray's nodes are simulated on this machine and their GPUs made up; the engines are real and serve the demo model. Four
models from one `serve deploy`: `halves`, tensor-parallel over two nodes (vLLM); `shared`, two replicas of half a GPU
each (vLLM); `captions`, two replicas (transformers); `sleeper`, which scales to zero (transformers). A worker that
holds a rank of `halves` is killed with all that runs on it; `captions` is later deployed with a shorter context.

The promise: no request fails but those in flight when the node died, and each of these is told so. Prints a table by
model, writes a plot, prints one line of JSON, and exits with 1 where the promise was broken.

Run it with `make simulate`.
"""

import argparse
import asyncio
import copy
import json
import re
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from tests.deployments.test_tensor_parallel import ON_VLLM
from tests.mixed_load import mixed_request
from tests.ray_nodes import RayNodes, ray_nodes
from tests.service import free_port, serve_deploy

NODES = [{"num_cpus": 2, "num_gpus": 2}] * 3  # two of them hold everything, however fractions lie
KILL_AT, CHANGE_AT = 0.25, 0.65  # of the run
CLIENTS = {"halves": 2, "shared": 2, "captions": 2, "sleeper": 1}
PAUSE_S = {"sleeper": 90.0}  # between a client's requests, here long enough that the model falls asleep again
SHORT_PAUSE_S = 1.0  # for all others: without it the clients take the processor time that new replicas start with
READY_TIMEOUT_S = 1500.0  # a dozen processes import vLLM: two minutes on two quiet cores, much more on busy ones
REQUEST_TIMEOUT_S = 600.0  # a request may wait for the killed replica's successor
OLD_CONTEXT, NEW_CONTEXT = 2048, 1024  # tokens; what the change of `captions` changes
ON_TRANSFORMERS = {"source": "demo", "engine": "transformers", "dtype": "float32", "num_cpus": 0.2}
TWO_REPLICAS = {"autoscaling": {"min_replicas": 2, "max_replicas": 2}}
TOLD = re.compile(r"[45]\d\d|[a-z]+(_[a-z]+)+")  # a status, or the code of a stream's error event


def config(port: int) -> dict[str, Any]:
    """What an engineer deploys."""
    models: dict[str, dict[str, Any]] = {
        "halves": {**ON_VLLM, "tensor_parallel_size": 2, "placement_strategy": "SPREAD"},
        "shared": {**ON_VLLM, "num_gpus": 0.5, **TWO_REPLICAS},
        "captions": {**ON_TRANSFORMERS, "max_context_tokens": OLD_CONTEXT, **TWO_REPLICAS},
        "sleeper": {
            **ON_TRANSFORMERS,
            "autoscaling": {"min_replicas": 0, "max_replicas": 1, "downscale_delay_s": 15},
        },
    }
    applications: list[dict[str, Any]] = [
        {"name": name, "import_path": "serve_app.app:build_model", "route_prefix": None, "args": args}
        for name, args in models.items()
    ]
    ingress = {
        "name": "ingress",
        "import_path": "serve_app.app:build_ingress",
        "route_prefix": "/",
        "args": {"num_cpus": 0.2, "num_replicas": 2, "request_timeout_s": REQUEST_TIMEOUT_S},
        "deployments": [{"name": "Ingress", "user_config": {"models": list(models)}}],
    }
    metrics = {
        "name": "metrics",
        "import_path": "serve_app.app:build_metrics",
        "route_prefix": "/metrics",
        "args": {},
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port, "request_timeout_s": REQUEST_TIMEOUT_S + 30},
        "applications": [*applications, ingress, metrics],
    }


@dataclass(frozen=True, slots=True)
class Seen:
    """One request, as its client saw it; times in seconds since the run began."""

    model: str
    begun_s: float
    ended_s: float
    outcome: str

    @property
    def is_answered(self) -> bool:
        return self.outcome == "right" or self.outcome.startswith("wrong")


@dataclass
class Run:
    """What was seen, and what was done when."""

    started_s: float = field(default_factory=time.monotonic)
    requests: list[Seen] = field(default_factory=list)
    looks: list[tuple[float, dict[str, dict[str, Any]]]] = field(default_factory=list)
    killed_s: float = float("inf")
    changed_s: float = float("inf")

    def now_s(self) -> float:
        return time.monotonic() - self.started_s

    async def ask(self, client: httpx.AsyncClient, model: str, first: int, until_s: float, pause_s: float) -> None:
        for number in count(first, 100):
            begun_s = self.now_s()
            if begun_s > until_s:
                return
            outcome = await mixed_request(client, number, model, echo_model=None)
            self.requests.append(Seen(model, begun_s, self.now_s(), outcome))
            await asyncio.sleep(min(pause_s, max(0.0, until_s - self.now_s())))

    async def watch(self, client: httpx.AsyncClient) -> None:
        while True:
            with suppress(httpx.HTTPError):  # the ingress replica that was asked died
                self.looks.append((self.now_s(), await entries(client)))
            await asyncio.sleep(0.5)

    def first_look_after(self, moment_s: float, model: str, **wanted: Any) -> float | None:
        """Seconds from this moment until `/v1/models` first said so of the model."""
        for at_s, found in self.looks:
            if at_s >= moment_s and wanted.items() <= found[model].items():
                return round(at_s - moment_s, 1)
        return None


async def entries(client: httpx.AsyncClient) -> dict[str, dict[str, Any]]:
    answer = (await client.get("/v1/models")).raise_for_status()
    return {entry["id"]: entry for entry in answer.json()["data"]}


async def wait_until_ready(client: httpx.AsyncClient) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    states: dict[str, str] = {}
    while set(states.values()) - {"ready", "scaled_to_zero"} or not states:
        if time.monotonic() > deadline:
            raise SystemExit(f"not ready within {READY_TIMEOUT_S:.0f} s: {states}")
        await asyncio.sleep(1)
        try:
            states = {name: entry["state"] for name, entry in (await entries(client)).items()}
        except httpx.HTTPError:  # the ingress starts
            continue


def node_to_kill(nodes: RayNodes) -> str:
    """A worker that holds a rank of `halves`, the other of which is on another node."""
    (group,) = [one for one in nodes.groups() if "::halves#" in one.name]
    assert len(set(group.nodes[1:])) == 2, group
    _, *workers = nodes.ids
    return next(worker for worker in workers if worker in group.nodes[1:])


async def drive(nodes: RayNodes, values: dict[str, Any], seconds: float) -> Run:
    url = f"http://127.0.0.1:{values['http_options']['port']}"
    async with httpx.AsyncClient(base_url=url, timeout=REQUEST_TIMEOUT_S + 60, trust_env=False) as client:
        begun = time.monotonic()
        await wait_until_ready(client)
        print(f"all four models ready {time.monotonic() - begun:.0f} s after the deploy", flush=True)
        run = Run()
        watching = asyncio.create_task(run.watch(client))
        numbers = iter(range(100))
        asking = [
            asyncio.create_task(run.ask(client, model, next(numbers), seconds, PAUSE_S.get(model, SHORT_PAUSE_S)))
            for model, num_clients in CLIENTS.items()
            for _ in range(num_clients)
        ]
        await asyncio.sleep(KILL_AT * seconds)
        victim = await asyncio.to_thread(node_to_kill, nodes)
        run.killed_s = run.now_s()
        num_killed = await asyncio.to_thread(nodes.kill, victim)
        print(f"{run.killed_s:.0f} s: killed a node with its {num_killed} processes", flush=True)
        await asyncio.sleep(CHANGE_AT * seconds - run.now_s())
        changed = copy.deepcopy(values)
        changed["applications"][2]["args"]["max_context_tokens"] = NEW_CONTEXT
        run.changed_s = run.now_s()
        await asyncio.to_thread(serve_deploy, changed, nodes.dashboard_url, nodes.environment)
        print(f"{run.changed_s:.0f} s: deployed `captions` anew", flush=True)
        await asyncio.gather(*asking)
        watching.cancel()
    return run


def figures(run: Run) -> dict[str, Any]:
    """Counts and seconds by model, and the requests that break the promise."""
    failed = [seen for seen in run.requests if seen.outcome != "right"]
    in_flight = [seen for seen in failed if seen.begun_s <= run.killed_s <= seen.ended_s]
    broken = [seen for seen in failed if seen not in in_flight or not TOLD.fullmatch(seen.outcome)]
    by_model = {}
    for model in CLIENTS:
        mine = [seen for seen in run.requests if seen.model == model]
        took = [seen.ended_s - seen.begun_s for seen in mine if seen.is_answered]
        by_model[model] = {
            "requests": len(mine),
            "wrong": sum(seen.outcome.startswith("wrong") for seen in mine),
            "failed in flight when a node died": sum(seen.model == model for seen in in_flight),
            "failed otherwise": sum(seen.model == model for seen in broken),
            "median s": round(median(took), 2) if took else None,
            "slowest s": round(max(took), 1) if took else None,
        }
    return {
        "models": by_model,
        "failures": Counter(seen.outcome for seen in failed),
        "broken": [f"{seen.model} {seen.begun_s:.1f}-{seen.ended_s:.1f} s: {seen.outcome}" for seen in broken],
        "seconds from the kill until halves answered again": _until_answered(run, "halves"),
        "seconds from the change until captions told its new context": run.first_look_after(
            run.changed_s, "captions", context_length=NEW_CONTEXT
        ),
        "times the sleeper woke": sum(
            before["sleeper"]["replicas"] == 0 < after["sleeper"]["replicas"]
            for (_, before), (_, after) in zip(run.looks, run.looks[1:], strict=False)
        ),
    }


def _until_answered(run: Run, model: str) -> float | None:
    """Seconds from the kill until a request that no replica from before it can have answered was answered."""
    ends = [s.ended_s for s in run.requests if s.model == model and s.is_answered and s.begun_s > run.killed_s]
    return round(min(ends) - run.killed_s, 1) if ends else None


def plot(run: Run, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(10, 6), sharex=True, layout="constrained")
    seconds = [at_s for at_s, _ in run.looks]
    for offset, model in enumerate(CLIENTS):
        replicas = [found[model]["replicas"] + 0.04 * offset for _, found in run.looks]
        above.step(seconds, replicas, where="post", label=model)
        answered = [seen for seen in run.requests if seen.model == model and seen.is_answered]
        below.scatter([s.ended_s for s in answered], [s.ended_s - s.begun_s for s in answered], s=4, label=model)
    failed = [seen for seen in run.requests if not seen.is_answered]
    below.scatter(
        [s.ended_s for s in failed], [s.ended_s - s.begun_s for s in failed], marker="x", c="black", label="failed"
    )
    for axes in (above, below):
        axes.axvline(run.killed_s, color="red", linestyle=":", label="a node is killed")
        axes.axvline(run.changed_s, color="blue", linestyle=":", label="captions is changed")
        axes.legend(fontsize="small", ncols=2)
    above.set(ylabel="replicas that answer", title="Three simulated nodes, mixed traffic")
    below.set(ylabel="seconds a request took", xlabel="seconds", yscale="log")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.three_nodes", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--plot", type=Path, help="where the plot is written, as PNG")
    given = parser.parse_args()
    values = config(free_port())
    head = {**NODES[0], "include_dashboard": True, "dashboard_port": free_port()}
    with ray_nodes([head, *NODES[1:]]) as nodes:
        serve_deploy(values, nodes.dashboard_url, nodes.environment)
        run = asyncio.run(drive(nodes, values, given.seconds))
    found = figures(run)
    if given.plot:
        plot(run, given.plot)
    for model, row in found["models"].items():
        print(model, ", ".join(f"{name} {value}" for name, value in row.items()))
    print(json.dumps(found))
    sys.exit(1 if found["broken"] else 0)


if __name__ == "__main__":
    main()

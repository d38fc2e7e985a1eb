"""How replicas follow the load: a trace of clients on a scripted model, and the replicas that answered them.

The scripted engine makes the load exact: a replica is full with four requests of two seconds. The floor of each
step is what Ray Serve is told to wait (`upscale_delay_s`, `downscale_delay_s`) and the start of a replica's process.
Prints a table of steps, writes the curve as PNG, and prints one line of JSON last.

Run it from the repository, `[bench]` installed: `python -m benchmarks.autoscaling --plot benchmarks/autoscaling.png`.
"""

import argparse
import asyncio
import json
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from tests.deployments.test_autoscaling import ENV, chat, entry, ingress, model
from tests.service import serving

MAX_REPLICAS = 4
# (clients, seconds): idle, a crowd, few, nobody until the model sleeps, a thousand at once
TRACE = ((2, 15), (16, 60), (4, 45), (0, 45))
SCALING = {"min_replicas": 0, "max_replicas": MAX_REPLICAS, "upscale_delay_s": 3, "downscale_delay_s": 10}
CONFIG: dict[str, Any] = {
    "proxy_location": "HeadOnly",
    "applications": [
        model("script", SCALING, tokens=80, tokens_per_s=40),
        ingress("ingress", "/", request_timeout_s=240),
        {"name": "metrics", "import_path": "serve_app.app:build_metrics", "route_prefix": "/metrics", "args": {}},
    ],
}
CONFIG["applications"][1]["deployments"][0]["user_config"] = {"models": ["script"]}


@dataclass
class Trace:
    """What was seen each quarter of a second, and how each request ended."""

    started_s: float = field(default_factory=time.monotonic)
    seconds: list[float] = field(default_factory=list)
    clients: list[int] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    num_clients: int = 0

    async def watch(self, client: httpx.AsyncClient) -> None:
        while True:
            found = await entry(client, "script")
            self.seconds.append(time.monotonic() - self.started_s)
            self.replicas.append(found["replicas"])
            self.clients.append(self.num_clients)
            await asyncio.sleep(0.25)

    async def ask(self, client: httpx.AsyncClient, number: int) -> None:
        """One client, which asks while the trace wants as many clients."""
        while number < self.num_clients:
            self.statuses.append((await chat(client, "script")).status_code)

    def reached(self, num_replicas: int, after_s: float) -> float | None:
        """Seconds after this moment until the model had so many replicas."""
        times = (s for s, n in zip(self.seconds, self.replicas, strict=True) if s >= after_s and n == num_replicas)
        found = next(times, None)
        return None if found is None else round(found - after_s, 1)


async def _run(url: str) -> tuple[Trace, dict[str, Any]]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=280, limits=limits, trust_env=False) as client:
        trace = Trace()
        watcher = asyncio.create_task(trace.watch(client))
        figures: dict[str, Any] = {}
        asking: list[asyncio.Task[None]] = []
        for num_clients, seconds in TRACE:
            begun_s = time.monotonic() - trace.started_s
            before, trace.num_clients = trace.num_clients, num_clients
            asking += [asyncio.create_task(trace.ask(client, n)) for n in range(before, num_clients)]
            await asyncio.sleep(seconds)
            wanted = -(-num_clients // 4)
            step = f"{before} to {num_clients} clients: seconds to {wanted} replicas"
            figures[step] = trace.reached(wanted, begun_s)
        await asyncio.gather(*asking)
        begun_s = time.monotonic() - trace.started_s
        answers = await asyncio.gather(*(chat(client, "script", f"!echo {n}") for n in range(1000)))
        figures["a thousand at zero: seconds to the first replica"] = trace.reached(1, begun_s)
        figures["a thousand at zero: seconds to the last answer"] = round(
            time.monotonic() - trace.started_s - begun_s, 1
        )
        trace.statuses += [answer.status_code for answer in answers]
        watcher.cancel()
    changes = [b - a for a, b in pairwise(trace.replicas) if a != b]
    figures["requests"] = len(trace.statuses)
    figures["requests not answered with 200"] = sum(status != 200 for status in trace.statuses)
    figures["changes of direction"] = sum((a > 0) != (b > 0) for a, b in pairwise(changes))
    return trace, figures


def _plot(trace: Trace, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.5), layout="constrained")
    full = [num_clients / 4 for num_clients in trace.clients]
    axes.fill_between(trace.seconds, full, step="post", alpha=0.3, label="clients / 4")
    axes.step(trace.seconds, trace.replicas, where="post", label="replicas that answer", linewidth=2)
    axes.set(xlabel="seconds", ylabel="replicas", title="Replicas follow the load (scripted engine, 4 at once each)")
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autoscaling", description=__doc__)
    parser.add_argument("--plot", type=Path, help="where the curve is written, as PNG")
    plot: Path | None = parser.parse_args().plot
    with serving(CONFIG, env=ENV) as service:
        trace, figures = asyncio.run(_run(service.url))
    if plot:
        _plot(trace, plot)
    for name, value in figures.items():
        print(f"{name:60} {value}")
    print(json.dumps({"scaling": SCALING, **figures}))


if __name__ == "__main__":
    main()

"""Whether a request costs the same beside 50 models as beside none, and a token the same in 512 streams as in 16.

Serves scripted models behind HAProxy, once one of them and once many, both at the same time and asked in turn; then
opens more and more streams that make as many tokens a second in all. Counts the processor time of the processes that
serve: the asked model's replica, ingress and HAProxy; and that of the rest, which is Ray's and the other models'.
Prints tables, then one line of JSON. Run it from the repository: `python -m benchmarks.flatness`.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import yaml

from benchmarks.serving.client import Calls, run_closed
from benchmarks.serving.processes import CpuMeter, Spent
from benchmarks.serving.service import Command, Service
from benchmarks.serving.systems import HAPROXY, Place, ray_environment
from benchmarks.serving.workloads import Load

NUM_CLIENTS, NUM_REQUESTS, NUM_TOKENS = 64, 1280, 16
STREAMS = (16, 64, 256, 512)
TOTAL_TOKENS_PER_S = 2048  # of all open streams together
WATCHED_S = 10.0
START_TIMEOUT_S = 600.0
PORTS = {"one": 19300, "many": 19700}
SERVING_ROLES = ("ingress", "HAProxy")  # and the asked model's replica


def paced(num_streams: int) -> str:
    return f"streams-{num_streams}"


def config(num_models: int) -> dict[str, Any]:
    """`num_models` alike, and one for each number of streams, whose pace makes the same tokens a second in all."""
    paces = {f"model-{number}": 0.0 for number in range(num_models)}
    if num_models == 1:
        paces |= {paced(number): TOTAL_TOKENS_PER_S / number for number in STREAMS}
    models = [
        {
            "name": name, "import_path": "serve_app.app:build_model", "route_prefix": None,
            "args": {"source": "none", "engine": "scripted", "num_cpus": 0.01, "max_ongoing_requests": 1000,
                     "max_batch_size": 1000, "engine_args": {"tokens": NUM_TOKENS, "tokens_per_s": pace}},
        }
        for name, pace in paces.items()
    ]  # fmt: skip
    ingress = {
        "name": "ingress", "import_path": "serve_app.app:build_ingress", "route_prefix": "/",
        "args": {"num_cpus": 0.01},
        "deployments": [{"name": "Ingress", "user_config": {"models": list(paces)}}],
    }  # fmt: skip
    metrics = {
        "name": "metrics",
        "import_path": "serve_app.app:build_metrics",
        "route_prefix": "/metrics",
        "args": {},
    }
    return {"proxy_location": "HeadOnly", "applications": [*models, ingress, metrics]}


@contextmanager
def served(name: str, num_models: int, scratch: Path) -> Iterator[Service]:
    folder = scratch / name[0]  # short, as is its parent: HAProxy puts sockets below it, too
    folder.mkdir()
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(config(num_models)))
    words = (sys.executable, "-m", "serve_app", "up", str(path), "--port", str(PORTS[name]), "--address", "local")
    service = Service(name, Path("build") / "bench" / f"flatness-{name}.log")
    environment = ray_environment(Place(PORTS[name], folder, {}), HAPROXY | wide_ports(PORTS[name]))
    service.start([Command(words, environment)], Path.cwd())
    try:
        asyncio.run(until_ready(service, f"http://127.0.0.1:{PORTS[name]}/ready?all=1"))
        yield service
    finally:
        service.stop()


def wide_ports(port: int) -> dict[str, str]:
    """Behind HAProxy every application takes a port of each kind, also where it has no route."""
    firsts = {"HTTP": port + 10, "GRPC": port + 200}
    return {
        f"RAY_SERVE_DIRECT_INGRESS_{end}_{kind}_PORT": str(first + (180 if end == "MAX" else 0))
        for kind, first in firsts.items()
        for end in ("MIN", "MAX")
    }


async def until_ready(service: Service, url: str) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline and not service.ended():
            try:
                async with session.get(url) as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.5)
    raise RuntimeError(f"not ready: {service.ended() or 'it still starts'}\n{service.last_lines()}")


def split(spent: list[Spent], model: str) -> tuple[float, float]:
    """Processor seconds of what serves this model, and of the rest."""
    serving = sum(
        one.cpu_s for one in spent
        if one.role in SERVING_ROLES or (one.role == "replica" and f"ServeReplica:{model}:" in one.command)
    )  # fmt: skip
    return serving, sum(one.cpu_s for one in spent) - serving


async def requests_cost(service: Service, url: str) -> tuple[float, float]:
    """Milliseconds of processor time a request: what serves, and the rest."""
    load = Load("model-0", NUM_CLIENTS, NUM_REQUESTS, NUM_TOKENS)
    calls = Calls(load, url, ["Hello"], None)
    await run_closed(calls.take(NUM_CLIENTS), NUM_CLIENTS)
    with CpuMeter(service.roots, [service.mark]) as meter:
        requests = await run_closed(calls.take(NUM_REQUESTS), NUM_CLIENTS)
    if failed := [request.failure for request in requests if request.failure]:
        raise RuntimeError(f"{len(failed)} requests failed: {failed[0]}")
    spent = meter.spent(min(r.begun_s for r in requests), max(r.ended_s for r in requests))
    serving_s, rest_s = split(spent, load.model)
    return 1000 * serving_s / NUM_REQUESTS, 1000 * rest_s / NUM_REQUESTS


async def tokens_cost(service: Service, url: str, num_streams: int) -> tuple[float, float, float]:
    """Microseconds of processor time a token in so many open streams: what serves, the rest; and tokens a second."""
    counts, model = [0], paced(num_streams)
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "!tokens 1000000"}]}

    async def read(session: aiohttp.ClientSession) -> None:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for piece in response.content.iter_any():
                counts[0] += piece.count(b'"content"')

    timeout, connector = aiohttp.ClientTimeout(total=300), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        readers = [asyncio.create_task(read(session)) for _ in range(num_streams)]
        try:
            await asyncio.sleep(8.0)  # until all are open and run evenly
            with CpuMeter(service.roots, [service.mark]) as meter:
                begun_s, before = time.perf_counter(), counts[0]
                done, _ = await asyncio.wait(readers, timeout=WATCHED_S, return_when=asyncio.FIRST_COMPLETED)
                ended_s, num_tokens = time.perf_counter(), counts[0] - before
            if done:
                raise RuntimeError(f"a stream ended early: {done.pop().exception()!r}")
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.wait(readers)
    serving_s, rest_s = split(meter.spent(begun_s, ended_s), model)
    return 1e6 * serving_s / num_tokens, 1e6 * rest_s / num_tokens, num_tokens / (ended_s - begun_s)


def table(
    title: str, found: Mapping[str, list[tuple[float, ...]]], columns: tuple[str, ...]
) -> dict[str, list[float]]:
    """Prints the medians and how far they went; returns the medians."""
    print(f"\n{title:12}" + "".join(f"{column:>26}" for column in columns))
    medians = {}
    for name, rounds in found.items():
        values = list(zip(*rounds, strict=True))
        medians[name] = [round(median(one), 3) for one in values]
        print(f"{name:12}" + "".join(f"{median(v):10.2f} ({min(v):.2f} to {max(v):.2f})".rjust(26) for v in values))
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=int, default=50, help="as many in the larger service (default 50)")
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement, in turn (default 3)")
    given = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="f-", dir="/tmp"))  # short: Ray puts sockets below it
    urls = {name: f"http://127.0.0.1:{port}" for name, port in PORTS.items()}
    sizes = {"one": 1 + len(STREAMS), "many": given.models}
    try:
        with served("one", 1, scratch) as one, served("many", given.models, scratch) as many:
            services = {"one": one, "many": many}
            costs: dict[str, list[tuple[float, ...]]] = {f"{sizes[name]} models": [] for name in services}
            for number in range(given.rounds):
                for name in list(services)[:: 1 if number % 2 == 0 else -1]:
                    costs[f"{sizes[name]} models"].append(asyncio.run(requests_cost(services[name], urls[name])))
                    print(f"round {number + 1} {name}: {costs[f'{sizes[name]} models'][-1]}", file=sys.stderr)
            many.stop()
            streams: dict[str, list[tuple[float, ...]]] = {f"{number} streams": [] for number in STREAMS}
            for number in range(given.rounds):
                for num_streams in STREAMS[:: 1 if number % 2 == 0 else -1]:
                    streams[f"{num_streams} streams"].append(asyncio.run(tokens_cost(one, urls["one"], num_streams)))
                    print(
                        f"round {number + 1} {num_streams}: {streams[f'{num_streams} streams'][-1]}", file=sys.stderr
                    )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    told = {
        "ms_per_request": table("a request", costs, ("serving, ms", "the rest, ms")),
        "us_per_token": table("a token", streams, ("serving, µs", "the rest, µs", "tokens/s")),
        "rounds": given.rounds,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()

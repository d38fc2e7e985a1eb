"""How often a request meets a replica that has its image or conversation, and how even the load stays.

Two traces on four replicas of the scripted engine, each with a cache of its own, through the whole service: once
with `balancing: affinity`, once with `power_of_two` (behind HAProxy that is least connections), alternating. The
ceiling of the hit rate is what one cache that sees everything would reach. Prints a table, then one line of JSON.

Run it from the repository: `python -m benchmarks.balancing`.
"""

import argparse
import asyncio
import io
import json
import random
from collections import Counter
from collections.abc import Coroutine, Iterable
from statistics import mean
from typing import Any, Protocol

import httpx
from PIL import Image

from tests.deployments.test_autoscaling import ingress, model
from tests.drawings import data_uri
from tests.service import serving

NUM_REPLICAS = 4
NUM_CLIENTS = 16
NUM_IMAGES, NUM_STYLES = 150, 4  # a training set is often captioned in several styles
NUM_CONVERSATIONS, NUM_TURNS = 60, 6
BALANCINGS = ("affinity", "power_of_two")


def _config() -> dict[str, Any]:
    scaling = {"min_replicas": NUM_REPLICAS, "max_replicas": NUM_REPLICAS}
    rules = {"request_timeout_s": 120}  # the same for all, so that HAProxy may lead to the models' own lanes
    models = [model(name, scaling, takes_images=True, first_token_s=0.05, cache_size=2000) for name in BALANCINGS]
    for one in models:
        one["route_prefix"] = f"/models/{one['name']}"
        one["args"] |= {"balancing": one["name"], "max_batch_size": 16, "http": rules}
    front = ingress("ingress", "/")
    front["args"] = {"num_cpus": 0.1, "max_ongoing_requests": 2000, **rules}
    front["deployments"][0]["user_config"] = {"models": list(BALANCINGS)}
    metrics = {
        "name": "metrics",
        "import_path": "serve_app.app:build_metrics",
        "route_prefix": "/metrics",
        "args": {},
    }
    return {"proxy_location": "HeadOnly", "applications": [*models, front, metrics]}


class Told:
    """Which replica answered, and whether it had the request in its cache."""

    def __init__(self) -> None:
        self.num_hits = 0
        self.load: Counter[str] = Counter()

    def note(self, answer: str) -> None:
        replica, cached = answer.split()
        self.load[replica] += 1
        self.num_hits += cached == "hit"

    def figures(self) -> dict[str, float]:
        total = self.load.total()
        return {
            "hit_rate": round(self.num_hits / total, 3),
            "max_over_mean_load": round(max(self.load.values()) / (total / NUM_REPLICAS), 2),
        }


class Trace(Protocol):
    async def __call__(self, client: httpx.AsyncClient, name: str, seed: int) -> Told: ...


async def captions(client: httpx.AsyncClient, name: str, seed: int) -> Told:
    """Each image in each style, in a random order: the image repeats, and so does each instruction."""
    rng, told = random.Random(seed), Told()
    images = [_image(rng) for _ in range(NUM_IMAGES)]
    requests = [(image, style) for image in images for style in range(NUM_STYLES)]
    rng.shuffle(requests)

    async def one(image: str, style: int) -> None:
        parts = [
            {"type": "image_url", "image_url": {"url": image}},
            {"type": "text", "text": f"!cache style {style}"},
        ]
        await _ask(client, name, [{"role": "user", "content": parts}], told)

    await _at_once(one(image, style) for image, style in requests)
    return told


async def chats(client: httpx.AsyncClient, name: str, seed: int) -> Told:
    """Conversations that go on, all with the same system prompt."""
    told = Told()

    async def one(number: int) -> None:
        messages: list[dict[str, Any]] = [{"role": "system", "content": "You are kind and brief."}]
        for turn in range(NUM_TURNS):
            messages.append({"role": "user", "content": f"!cache conversation {seed}/{number}, turn {turn}"})
            messages.append({"role": "assistant", "content": await _ask(client, name, messages, told)})

    await _at_once(one(number) for number in range(NUM_CONVERSATIONS))
    return told


TRACES: dict[str, tuple[Trace, float]] = {
    "captions": (captions, 1 - 1 / NUM_STYLES),
    "chats": (chats, 1 - 1 / NUM_TURNS),
}


async def _ask(client: httpx.AsyncClient, name: str, messages: list[dict[str, Any]], told: Told) -> str:
    response = await client.post("/v1/chat/completions", json={"model": name, "messages": messages})
    response.raise_for_status()
    answer: str = response.json()["choices"][0]["message"]["content"]
    told.note(answer)
    return answer


async def _at_once(requests: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them, a fixed number at a time."""
    waiting = iter(requests)

    async def client() -> None:
        for request in waiting:
            await request

    await asyncio.gather(*(client() for _ in range(NUM_CLIENTS)))


def _image(rng: random.Random) -> str:
    buffer = io.BytesIO()
    Image.frombytes("RGB", (32, 32), rng.randbytes(32 * 32 * 3)).save(buffer, "PNG")
    return data_uri(buffer.getvalue())


async def _run(url: str, num_rounds: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        for number in range(num_rounds):
            for trace, (play, _) in TRACES.items():
                for balancing in BALANCINGS:
                    told = await play(client, balancing, number)
                    rows.append({"trace": trace, "balancing": balancing, **told.figures()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.balancing", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--haproxy", action="store_true", help="behind HAProxy, which chooses the replica")
    given = parser.parse_args()
    with serving(_config(), options=["--haproxy"] * given.haproxy) as service:
        rows = asyncio.run(_run(service.url, given.rounds))
    summary: dict[str, dict[str, float]] = {}
    print(f"{'trace':10} {'balancing':14} {'hit rate':>9} {'ceiling':>8} {'max/mean load':>14}")
    for trace, (_, ceiling) in TRACES.items():
        for balancing in BALANCINGS:
            mine = [row for row in rows if (row["trace"], row["balancing"]) == (trace, balancing)]
            hits, load = (round(mean(row[key] for row in mine), 3) for key in ("hit_rate", "max_over_mean_load"))
            summary[f"{trace} {balancing}"] = {"hit_rate": hits, "max_over_mean_load": load}
            print(f"{trace:10} {balancing:14} {hits:9.3f} {ceiling:8.3f} {load:14.2f}")
    print(
        json.dumps(
            {"replicas": NUM_REPLICAS, "clients": NUM_CLIENTS, "haproxy": given.haproxy, "rounds": rows, **summary}
        )
    )


if __name__ == "__main__":
    main()

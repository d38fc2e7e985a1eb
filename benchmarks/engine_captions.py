"""Captions per second of the transformers engine alone, at several numbers of requests at once: no Ray, no HTTP.

The ceiling is the model's forward; what this shows beside it is how well the engine fills its batches. Each client
sends its next request when its last one is answered. Half of the requests ask for a short caption, half for a long
one, so that rows end at different steps. CPU time stands beside it for machines that aren't quiet. Prints a table,
then one line of JSON.

Run it from the repository:
`python -m benchmarks.engine_captions [source] [--requests 160] [--settings '{"num_cpus": 2}']`.
"""

import argparse
import asyncio
import json
import time
from typing import Any

from serve_app.config.applications import ModelConfig
from serve_app.engines.transformers.engine import TransformersEngine
from serve_app.families import caption_prompt
from serve_app.messages import Chunk, GenerationRequest, Message, RgbImage, Sampling, Text
from tests import drawings as images

NUM_AT_ONCE = (1, 8, 16)
PROMPTS = (caption_prompt("generic", "short"), caption_prompt("generic", "detailed"))


def _request(number: int) -> GenerationRequest:
    colors = list(images.COLORS)
    image = images.draw(colors[number % len(colors)], images.SHAPES[number % len(images.SHAPES)])
    parts = (RgbImage(image.width, image.height, image.tobytes()), Text(PROMPTS[number // 2 % 2]))
    return GenerationRequest(str(number), "bench", (Message("user", parts),), Sampling(64, temperature=0.0), 600)


async def _client(engine: TransformersEngine, waiting: list[GenerationRequest], seen: list[dict[str, float]]) -> None:
    while waiting:
        request = waiting.pop()
        begun_s = time.perf_counter()
        came: list[tuple[float, int]] = []

        def put(chunk: Chunk, came: list[tuple[float, int]] = came) -> None:
            came.append((time.perf_counter(), chunk.num_tokens))

        await engine.generate(request, put)
        num_tokens = sum(tokens for _, tokens in came)
        seen.append(
            {"first_s": came[0][0] - begun_s, "all_s": time.perf_counter() - begun_s, "num_tokens": num_tokens}
        )


async def _measure(engine: TransformersEngine, num_at_once: int, num_requests: int) -> dict[str, float]:
    waiting, seen = [_request(number) for number in range(num_requests)], list[dict[str, float]]()
    begun_s, cpu_begun_s = time.perf_counter(), time.process_time()
    await asyncio.gather(*(_client(engine, waiting, seen) for _ in range(num_at_once)))
    seconds, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_begun_s
    first, whole = (sorted(one[key] for one in seen) for key in ("first_s", "all_s"))
    return {
        "at_once": num_at_once,
        "captions_per_s": round(len(seen) / seconds, 1),
        "cpu_ms_per_caption": round(1000 * cpu_s / len(seen), 1),
        "tokens_per_s": round(sum(one["num_tokens"] for one in seen) / seconds),
        "first_chunk_p50_ms": round(first[len(first) // 2] * 1000),
        "first_chunk_p95_ms": round(first[len(first) * 95 // 100] * 1000),
        "whole_p50_ms": round(whole[len(whole) // 2] * 1000),
    }


async def _main(settings: dict[str, Any], num_requests: int) -> None:
    engine = TransformersEngine(ModelConfig.model_validate(settings))
    await engine.start()
    await _client(engine, [_request(number) for number in range(4)], [])  # warm
    figures = [await _measure(engine, num_at_once, num_requests) for num_at_once in NUM_AT_ONCE]
    await engine.stop()
    print("".join(f"{name:>20}" for name in figures[0]))
    for row in figures:
        print("".join(f"{value:>20}" for value in row.values()))
    print(json.dumps(figures))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("source", nargs="?", default="demo")
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--requests", type=int, default=160)
    given = parser.parse_args()
    asyncio.run(_main({"num_cpus": 2, **given.settings, "source": given.source}, given.requests))

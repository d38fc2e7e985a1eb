"""The transformers engine on a GPU: the CPU's tokens, captions per second batch by batch, and real want of memory.

The ceiling is the model's own forward; these checkpoints are tiny, so what is measured is what the engine adds to
each step, and how well it fills a batch. Tokens are compared in float32 with TF32 off; speed is bfloat16's, and
int8's beside it. Memory is made scarce by filling the card, and the requests that don't fit must fail alone.
Needs torch, transformers and this repository, but no cluster, no vLLM, no download; int8 also needs torchao.
Prints tables, then one line of JSON.

Run it from the repository: `python -m benchmarks.gpu_engine --device cuda`, or, briefly,
`python -m benchmarks.gpu_engine --device cpu --models demo --batches 1 2 --requests 4`.
"""

import argparse
import asyncio
import json
import platform
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from serve_app.config.applications import ModelConfig
from serve_app.engines.transformers.engine import TransformersEngine
from serve_app.errors import ConfigError, EngineFailed
from serve_app.families import caption_prompt
from serve_app.messages import Chunk, GenerationRequest, Message, RgbImage, Sampling, Text
from tests import drawings
from tests.matrix.near_ties import num_same, tokens_of
from tests.matrix.rows import ROWS

MODELS = ("demo", "llava", "qwen2.5-vl", "blip2-t5")  # joins rows, has positions of its own, encodes and decodes
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
PRECISIONS: dict[str, dict[str, str]] = {"bfloat16": {}, "int8": {"quantization": "int8"}}
NUM_COMPARED = 8
MAX_TOKENS = 32
TIMEOUT_S = 600.0
NUM_TOO_MANY = 128  # long requests, whose cache alone takes about 200 MiB
ROOM_LEFT_BYTES = 32 << 20  # for one short request, which needs a few MiB
LONG_PROMPT = "Tell me of a red circle and a blue square. " * 30


@asynccontextmanager
async def engine_on(device: str, source: str, **settings: Any) -> AsyncIterator[TransformersEngine]:
    config = {"source": source, "num_gpus": 1 if device == "cuda" else 0, "batch_wait_s": 0.05, **settings}
    engine = TransformersEngine(ModelConfig.model_validate(config))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def caption_request(number: int, family: str, max_tokens: int = MAX_TOKENS) -> GenerationRequest:
    colors = list(drawings.COLORS)
    image = drawings.draw(colors[number % len(colors)], drawings.SHAPES[number % len(drawings.SHAPES)], (96, 96))
    prompt = caption_prompt(family, "short" if family in ("blip", "git") else "detailed")  # these are asked nothing
    return text_request(number, RgbImage(*image.size, image.tobytes()), Text(prompt), max_tokens=max_tokens)


def text_request(number: int, *parts: RgbImage | Text, max_tokens: int) -> GenerationRequest:
    sampling = Sampling(max_tokens, temperature=0.0)
    return GenerationRequest(str(number), "bench", (Message("user", parts),), sampling, TIMEOUT_S)


async def chunks_of(engine: TransformersEngine, request: GenerationRequest) -> list[Chunk]:
    chunks: list[Chunk] = []
    await engine.generate(request, chunks.append)
    return chunks


async def compare(device: str, name: str, source: str) -> dict[str, Any]:
    """Greedy tokens in float32, each request alone, on the CPU and on the device."""
    answers = []
    for place in ("cpu", device):
        async with engine_on(place, source, dtype="float32") as engine:
            asked = [_with_logprobs(caption_request(number, engine.family)) for number in range(NUM_COMPARED)]
            answers.append([tokens_of(await chunks_of(engine, request)) for request in asked])
    expected, found = answers
    same = [num_same(one, other) for one, other in zip(expected, found, strict=True)]
    return {"model": name, "tokens": sum(map(len, expected)), "same": sum(same)}


def _with_logprobs(request: GenerationRequest) -> GenerationRequest:
    return replace(request, sampling=replace(request.sampling, num_logprobs=2))


async def speed(device: str, name: str, source: str, precision: str, batch: int, num_requests: int) -> dict[str, Any]:
    """Captions per second with `batch` requests under way at any time."""
    settings = {"dtype": "bfloat16", "max_batch_size": batch, **PRECISIONS[precision]}
    async with engine_on(device, source, **settings) as engine:
        waiting = [caption_request(number, engine.family) for number in range(max(num_requests, 2 * batch))]
        await asyncio.gather(*(chunks_of(engine, request) for request in waiting[:batch]))  # warm
        num_captions, begun_s = len(waiting), time.perf_counter()
        num_tokens = await asyncio.gather(*(_client(engine, waiting) for _ in range(batch)))
        seconds = time.perf_counter() - begun_s
    return {
        "model": name,
        "precision": precision,
        "batch": batch,
        "captions_per_s": round(num_captions / seconds, 1),
        "tokens_per_s": round(sum(num_tokens) / seconds),
    }


async def _client(engine: TransformersEngine, waiting: list[GenerationRequest]) -> int:
    num_tokens = 0
    while waiting:
        num_tokens += sum(chunk.num_tokens for chunk in await chunks_of(engine, waiting.pop()))
    return num_tokens


async def starve(source: str) -> dict[str, Any]:
    """Fill the card but for a little, send more than fits, then one request that does."""
    async with engine_on("cuda", source, dtype="bfloat16", max_batch_size=NUM_TOO_MANY) as engine:
        short = text_request(0, Text("Who are you?"), max_tokens=MAX_TOKENS)
        before = await chunks_of(engine, short)
        torch.cuda.empty_cache()
        free_bytes, _ = torch.cuda.mem_get_info()
        ballast = torch.empty(free_bytes - ROOM_LEFT_BYTES, dtype=torch.uint8, device="cuda")
        long = [text_request(number, Text(LONG_PROMPT), max_tokens=MAX_TOKENS) for number in range(NUM_TOO_MANY)]
        ends = await asyncio.gather(*(_end_of(engine, request) for request in long))
        after = await chunks_of(engine, short)
        await engine.check_health()
        del ballast
    torch.cuda.empty_cache()
    return {
        "requests": NUM_TOO_MANY,
        "answered": ends.count(None),
        "out_of_memory": sum("ran out of memory" in end for end in ends if end),
        "other_errors": sorted({end for end in ends if end and "ran out of memory" not in end}),
        "answers_afterwards": "".join(c.text for c in after) == "".join(c.text for c in before),
    }


async def _end_of(engine: TransformersEngine, request: GenerationRequest) -> str | None:
    """None for an answer, else the error's sentence."""
    try:
        await chunks_of(engine, request)
    except EngineFailed as exc:
        return exc.message
    return None


def print_table(figures: list[dict[str, Any]]) -> None:
    if figures:
        print("".join(f"{name:>16}" for name in figures[0]))
    for row in figures:
        print("".join(f"{value:>16}" for value in row.values()))
    print(flush=True)


def versions(device: str) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cuda": torch.version.cuda if device == "cuda" else None,
    }


def sources(names: list[str], folder: Path) -> dict[str, str]:
    """By name, what the engine loads: the embedded demo, or the test matrix's tiny checkpoint, built here."""
    builders = {row.name: row.build for row in ROWS}
    return {name: name if name == "demo" else str(builders[name](folder / name)) for name in names}


async def main(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    loaded = sources(given.models, folder)
    compared = [await compare(given.device, name, source) for name, source in loaded.items()]
    print_table(compared)
    speeds, left_out = [], {}
    for precision in PRECISIONS:
        try:
            speeds += [
                await speed(given.device, name, source, precision, batch, given.requests)
                for name, source in loaded.items()
                for batch in given.batches
            ]
        except ConfigError as exc:  # int8 where torchao is missing
            left_out[precision] = str(exc)
    print_table(speeds)
    starved = await starve("demo") if given.device == "cuda" else None
    print_table([starved] if starved else [])
    return versions(given.device) | {
        "compared": compared,
        "speeds": speeds,
        "left_out": left_out,
        "starved": starved,
    }


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The transformers engine on one device.")
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=["demo", *(row.name for row in ROWS)])
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES))
    parser.add_argument("--requests", type=int, default=64, help="captions for each figure, at least two batches")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here: install its CUDA build and a driver, or take --device cpu")
    return given


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        figures = asyncio.run(main(options(), Path(directory)))
    print(json.dumps(figures))

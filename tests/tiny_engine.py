"""A transformers engine on a tiny checkpoint, requests to it, and a gate that holds its model between two steps."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch

from serve_app.config.applications import ModelConfig
from serve_app.engines.transformers.engine import TransformersEngine
from serve_app.messages import Chunk, GenerationRequest, Generator, Message, RgbImage, Sampling, Text, ToolUse
from tests.streaming import stream

Answer = tuple[str, int, str | None]


@asynccontextmanager
async def started(source: Path, **settings: Any) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(ModelConfig.model_validate({"source": str(source), "batch_wait_s": 0.2, **settings}))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def image(width: int, height: int, seed: int) -> RgbImage:
    pixels = torch.randint(0, 256, (width * height * 3,), generator=torch.Generator().manual_seed(seed))
    return RgbImage(width, height, bytes(pixels.tolist()))


def request(
    *parts: str | RgbImage, timeout_s: float = 60, tool_use: ToolUse | None = None, **sampling: Any
) -> GenerationRequest:
    given = tuple(Text(part) if isinstance(part, str) else part for part in parts)
    setting = Sampling(**{"temperature": 0.0, "max_tokens": 12, **sampling})
    return GenerationRequest("id", "tiny", (Message("user", given),), setting, timeout_s, tool_use)


async def chunks_of(engine: Generator, asked: GenerationRequest) -> list[Chunk]:
    return [chunk async for chunk in stream(engine, asked)]


async def answer(engine: TransformersEngine, asked: GenerationRequest) -> Answer:
    chunks = await chunks_of(engine, asked)
    return "".join(c.text for c in chunks), sum(c.num_tokens for c in chunks), chunks[-1].finish_reason


async def together(engine: TransformersEngine, asked: list[GenerationRequest]) -> list[Answer]:
    return await asyncio.gather(*(answer(engine, one) for one in asked))


def model_of(engine: TransformersEngine) -> Any:
    """The loaded model, to put faults into."""
    loaded: Any = engine._checkpoint
    return loaded.model


def num_running(engine: TransformersEngine) -> int:
    """Rows that the model still works on."""
    worker: Any = engine._worker
    return sum(not row.is_ended for row in worker._running)


class StepGate:
    """Holds the model before the given forwards (the first one is 1) until `go`. `num_steps` counts them all."""

    def __init__(self, engine: TransformersEngine, *steps: int) -> None:
        self._engine = engine
        self._steps = steps
        self._held, self._go = threading.Event(), threading.Event()
        self.num_steps = 0
        model_of(engine).register_forward_pre_hook(self._before_forward)

    def _before_forward(self, *args: Any) -> None:
        self.num_steps += 1
        if self.num_steps in self._steps:
            self._held.set()
            assert self._go.wait(60), "nobody opened the gate"
            self._go.clear()

    async def is_held(self) -> None:
        """Return once the model is held."""
        assert await asyncio.to_thread(self._held.wait, 60), f"the model made {self.num_steps} steps only"
        self._held.clear()

    async def arrive(self, asked: GenerationRequest) -> "asyncio.Task[Answer]":
        """Send a request while the model is held; it waits when this returns."""
        num_waiting = self._engine.num_waiting
        task = asyncio.create_task(answer(self._engine, asked))
        while self._engine.num_waiting == num_waiting or self._engine._num_preparing:
            assert not task.done(), task.result()
            await asyncio.sleep(0.005)
        return task

    def go(self) -> None:
        """Let the model go on to the next held step."""
        self._go.set()


def num_bytes(model: torch.nn.Module) -> int:
    """What the weights take; a quantized one holds int8 values and a scale for each row."""
    total = 0
    for weight in model.parameters():
        parts = [getattr(weight, name) for name in ("qdata", "scale") if hasattr(weight, name)] or [weight.data]
        total += sum(part.numel() * part.element_size() for part in parts)
    return total

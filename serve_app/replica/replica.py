"""One copy of a model: owns its engine, loads it and warms it up; counts, times and cancels what runs on it."""

import asyncio
import logging
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType

from serve_app.checkpoints import source
from serve_app.checkpoints.load_progress import LoadProgress, Report, to_nobody
from serve_app.config import environment
from serve_app.config.applications import ModelConfig
from serve_app.config.autoscaling import KV_CACHE_USE, TIME_TO_FIRST_TOKEN, WAITING_TOKENS
from serve_app.engines import Engine
from serve_app.engines.choice import create_engine
from serve_app.errors import ConfigError, EngineFailed, ServeAppError
from serve_app.messages import (
    Chunk,
    EventEncoder,
    GenerationRequest,
    Message,
    ModelDescription,
    Put,
    RgbImage,
    Sampling,
    StreamTotal,
    Text,
    TokenizedPrompt,
    Write,
    merged,
)
from serve_app.metrics.registry import GenerationTracker, Metrics, outcome_of
from serve_app.replica.pressure import FirstTokenClock

logger = logging.getLogger("serve_app")

WARM_UP_TIMEOUT_S = 300.0  # kernels may be compiled by the first request
_WARM_UP_TEXT = (Text("Hello"),)
_WARM_UP_IMAGE = (RgbImage(64, 64, bytes([128]) * (64 * 64 * 3)), Text("What is this?"))


class Replica:
    """Runs one engine and answers requests with it."""

    def __init__(self, name: str, config: ModelConfig, engine: Engine, metrics: Metrics) -> None:
        self._name = name
        self._config = config
        self._engine = engine
        self._metrics = metrics
        self._first_tokens = FirstTokenClock()
        self._version: str | None = None
        self._version_note: str | None = None

    async def start(self, report: Report = to_nobody) -> None:
        """Load the model and, where its config says so, warm it up. Raises `ConfigError` naming the fix."""
        await self._engine.start(report)
        if self._config.engine != "scripted":
            self._version, self._version_note = await asyncio.to_thread(source.version_of, self._config)
        if not self._config.warms_up:
            return
        report("warming up")
        try:
            await self._warm_up()
        except ServeAppError as exc:
            await self._engine.stop()
            raise ConfigError(
                f"its warm-up request failed ({exc.message}): correct that, or set warm_up: false"
            ) from exc

    async def generate(self, request: GenerationRequest, put: Put) -> None:
        """Pass the engine's chunks to `put` and count them. Cancelling stops the engine's work within a step.

        Raises `EngineFailed` where the engine returns before each answer has its end.
        """
        begun, num_ended = set[int](), 0
        with (
            ExitStack() as on_exit,
            self._metrics.generation(request.model) as generation,
            self._first_tokens.waiting(request.waited_s) as has_token,
        ):
            on_exit.push(partial(_log_end, request, generation, time.monotonic()))

            def counted(chunk: Chunk) -> None:
                nonlocal num_ended
                begun.add(chunk.index)
                num_ended += chunk.finish_reason is not None
                if chunk.queue_s is not None:
                    has_token()
                    generation.started(chunk.queue_s)
                generation.chunk(chunk)
                put(chunk)

            try:
                await self._engine.generate(request, counted)
            except ServeAppError:
                raise
            except Exception as exc:  # an engine boundary: what its libraries raise means nothing elsewhere
                logger.exception("model %s: request %s failed", request.model, request.id)
                raise EngineFailed(
                    f"model '{request.model}' failed on this request: send it again; the replica's log says why"
                ) from exc
            if not begun or num_ended != len(begun):
                raise EngineFailed(f"model '{request.model}' stopped in the middle of its answer: send it again")

    async def answer(self, request: GenerationRequest) -> tuple[Chunk, ...]:
        chunks: list[Chunk] = []
        await self.generate(replace(request, is_streamed=False), chunks.append)
        return merged(chunks)

    async def stream(self, request: GenerationRequest, encoder: EventEncoder, write: Write) -> StreamTotal:
        num_tokens = num_prompt_tokens = num_writes = 0
        num_cached_tokens: int | None = None

        def put(chunk: Chunk) -> None:
            nonlocal num_tokens, num_prompt_tokens, num_writes, num_cached_tokens
            num_tokens += chunk.num_tokens
            num_prompt_tokens = chunk.num_prompt_tokens
            if chunk.num_cached_tokens is not None:  # the first chunk's alone
                num_cached_tokens = chunk.num_cached_tokens
            if events := encoder.encode(chunk):
                num_writes += 1
                write(events)

        await self.generate(request, put)
        if events := encoder.end():
            num_writes += 1
            write(events)
        return StreamTotal(num_tokens, num_writes, num_prompt_tokens, num_cached_tokens)

    async def tokenize(self, request: GenerationRequest) -> TokenizedPrompt:
        return await self._engine.tokenize(request)

    async def _warm_up(self) -> None:
        """Generate a few tokens by the engine itself, so that no metric counts them."""
        if self._engine.takes_images:
            await self._try_out(_WARM_UP_IMAGE)
        try:
            await self._try_out(_WARM_UP_TEXT)
        except ServeAppError as exc:  # captioners may know no prompt without an image
            if not self._engine.takes_images:
                raise
            logger.info("model=%s: answers no text without an image (%s)", self._name, exc.message)

    async def _try_out(self, parts: tuple[Text | RgbImage, ...]) -> None:
        sampling = Sampling(max_tokens=2, temperature=0.0)
        request = GenerationRequest("warm-up", self._name, (Message("user", parts),), sampling, WARM_UP_TIMEOUT_S)
        await self._engine.generate(request, lambda chunk: None)

    def describe(self) -> ModelDescription:
        return ModelDescription(
            tasks=tuple(task for task in self._config.tasks if task != "caption" or self._engine.takes_images),
            engine=type(self._engine).__name__.removesuffix("Engine").lower(),
            family=self._engine.family if self._config.family == "auto" else self._config.family,
            context_length=self._engine.context_length,
            takes_images=self._engine.takes_images,
            adapters=tuple(self._config.adapters),
            image_limit=self._engine.image_limit,
            image_edge=self._engine.image_edge,
            num_at_once=min(self._engine.num_at_once, self._config.ongoing_limit),
            version=self._version,
            version_note=self._version_note,
            hub_id=source.hub_id(self._config.source),
            http=self._config.http.fingerprint,
            balancing=self._config.balancing,
        )

    def pressure(self) -> dict[str, float]:
        """The engine's load by the names that autoscaling uses, in tokens, a share and seconds."""
        kv_cache_use = self._engine.kv_cache_use
        return {
            WAITING_TOKENS: self._engine.num_waiting_tokens,
            TIME_TO_FIRST_TOKEN: self._first_tokens.seconds(),
            **({} if kv_cache_use is None else {KV_CACHE_USE: kv_cache_use}),
        }

    async def check_health(self) -> None:
        await self._engine.check_health()

    async def stop(self) -> None:
        await self._engine.stop()


def _log_end(
    request: GenerationRequest, generation: GenerationTracker, started_s: float,
    kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None,
) -> None:  # fmt: skip
    """Log one line; never a prompt, an image or an answer."""
    logger.info(
        "generation id=%s model=%s outcome=%s seconds=%.3f tokens=%d",
        request.id, request.model, outcome_of(error), time.monotonic() - started_s, generation.num_tokens,
    )  # fmt: skip


async def start_replica(name: str, config: ModelConfig, metrics: Metrics, progress: LoadProgress) -> Replica:
    """A replica that can serve. Raises `ConfigError` with one line that names the model and the fix."""
    try:
        environment.take(config.env_from)  # before any library looks
        progress("importing the engine")
        # in a thread: it takes seconds, in which the sidecar hears from this process
        engine = await asyncio.to_thread(create_engine, config, progress)
        metrics.watch_queue(name, lambda: engine.num_waiting)
        replica = Replica(name, config, engine, metrics)
        await replica.start(progress)
        metrics.watch_kv_cache(name, lambda: engine.kv_cache_use)
    except ConfigError as exc:
        raise ConfigError(f"model '{name}': {' '.join(str(exc).splitlines())}") from exc
    finally:
        progress.end()
    return replica

"""One copy of a model: owns its engine; counts, times and cancels what runs on it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from serve_app.config import ModelConfig
from serve_app.engines import Engine
from serve_app.errors import ConfigError
from serve_app.messages import Chunk, GenerationRequest, ModelDescription, Task
from serve_app.metrics.registry import Metrics


class Replica:
    """Runs one engine and answers requests with it."""

    def __init__(self, name: str, config: ModelConfig, engine: Engine, metrics: Metrics) -> None:
        self._name = name
        self._config = config
        self._engine = engine
        self._metrics = metrics

    async def start(self) -> None:
        """Load the model. Raises `ConfigError` naming the model and the fix."""
        try:
            await self._engine.start()
        except ConfigError as exc:
            raise ConfigError(f"model '{self._name}': {exc}") from exc

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """The engine's chunks, counted. Closing the generator stops the engine's work within a step."""
        with self._metrics.generation(self._name) as generation:
            async with aclosing(self._engine.generate(request)) as chunks:
                async for chunk in chunks:
                    if chunk.queue_s is not None:
                        generation.started(chunk.queue_s)
                    generation.chunk(chunk)
                    yield chunk

    def describe(self) -> ModelDescription:
        return ModelDescription(
            tasks=self._tasks(),
            engine=type(self._engine).__name__.removesuffix("Engine").lower(),
            family=self._engine.family if self._config.family == "auto" else self._config.family,
            context_length=self._engine.context_length,
            takes_pictures=self._engine.takes_pictures,
            picture_limit=self._engine.picture_limit,
        )

    async def check_health(self) -> None:
        await self._engine.check_health()

    async def stop(self) -> None:
        await self._engine.stop()

    def _tasks(self) -> tuple[Task, ...]:
        """The configured tasks; a model that takes no pictures has no captions."""
        return tuple(t for t in self._config.tasks if t != "caption" or self._engine.takes_pictures)


def create_engine(config: ModelConfig) -> Engine:
    """The configured engine, not started. Its library is imported here and not before."""
    if config.num_ranks > 1:
        raise ConfigError(
            f"{config.num_ranks} ranks need the vLLM engine, which this version doesn't have: "
            "leave out tensor_parallel_size and pipeline_parallel_size"
        )
    if config.engine == "scripted":
        from serve_app.engines.scripted_engine import ScriptedEngine

        return ScriptedEngine(config)
    from serve_app.engines.transformers_engine import TransformersEngine

    return TransformersEngine(config)

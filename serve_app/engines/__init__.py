"""The engine protocol: five verbs and a description. Each engine is a folder that alone names its library."""

from typing import Protocol

from serve_app.checkpoints.load_progress import Report, to_nobody
from serve_app.config.applications import Family
from serve_app.messages import GenerationRequest, Generator, ImageEdge, TokenizedPrompt


class Engine(Generator, Protocol):
    """Runs one model inside a replica. Made by its constructor from the model's config, loaded by `start`."""

    @property
    def context_length(self) -> int | None:
        """The most tokens a prompt and its answer can have together; None where unlimited. Known after `start`."""
        ...

    @property
    def takes_images(self) -> bool:
        """Whether prompts may contain images. Known after `start`."""
        ...

    @property
    def image_limit(self) -> int | None:
        """The most images a prompt may have; None where only the context limits them. Known after `start`."""
        ...

    @property
    def image_edge(self) -> ImageEdge | None:
        """The edge that the model itself resizes images to; None where it may use more. Known after `start`."""
        ...

    @property
    def family(self) -> Family:
        """How the model's architecture is prompted for captions. Known after `start`."""
        ...

    @property
    def num_at_once(self) -> int:
        """How many requests it works on at once. Known after `start`."""
        ...

    @property
    def num_waiting(self) -> int:
        """Requests accepted but not yet running on the model."""
        ...

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of the requests that have no first token yet."""
        ...

    @property
    def kv_cache_use(self) -> float | None:
        """The share of the engine's cache for keys and values that is in use, 0 to 1; None where it has no bound."""
        ...

    async def start(self, report: Report = to_nobody) -> None:
        """Load the model and report each step. Raises `ConfigError` with the fix where the config can't work."""
        ...

    async def tokenize(self, request: GenerationRequest) -> TokenizedPrompt:
        """The prompt that the request would make. Raises `UnsupportedTask` where it has images."""
        ...

    async def check_health(self) -> None:
        """Raise `EngineFailed` if the engine can't serve any more; return at once otherwise."""
        ...

    async def stop(self) -> None:
        """End running work (each request raises `EngineFailed`) and free the model. Idempotent."""
        ...

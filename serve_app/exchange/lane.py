"""What a dialect needs of the lane it stands in: which models there are, what answers, what checks images.

A lane is the ingress (every model) or one model's own HTTP app; dialects can't tell which.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from serve_app.access.admission import Admission, estimated_tokens
from serve_app.access.budget import Budget
from serve_app.access.keys import Key, Keyring
from serve_app.access.running import Running
from serve_app.config.http import HttpConfig
from serve_app.errors import DeadlineExceeded, Forbidden, ModelNotReady, ServeAppError, UnknownModel
from serve_app.images.gate import ImageGate, ImageSource
from serve_app.messages import (
    Chunk,
    EventEncoder,
    GenerationRequest,
    ModelHandle,
    RgbImage,
    StreamTotal,
    Task,
    TokenizedPrompt,
    Write,
)
from serve_app.metrics.registry import Metrics
from serve_app.models.entry import Catalog, ModelEntry, first_able
from serve_app.strict import nearest_hint


@dataclass(frozen=True, slots=True)
class Lane:
    """Made once per process by `app.py` and handed to every dialect."""

    config: HttpConfig
    catalog: Catalog
    handle: ModelHandle
    images: ImageGate
    metrics: Metrics
    keys: Keyring
    budget: Budget
    admission: Admission
    running: Running
    cancel_elsewhere: Callable[[str, Key | None], Awaitable[bool]]
    heed_others: Callable[[], Coroutine[Any, Any, None]]  # runs for as long as the lane is open

    def choose(self, name: str | None, task: Task, key: Key | None, *, with_images: bool = False) -> ModelEntry:
        """The model that will answer this key: the one it names, or the task's first that it may use.

        `with_images` it is one that takes images, where there is a choice. Raises `Forbidden`, and what
        `Catalog.choose` does.
        """
        with self._discreetly(key):
            return self._choose(name, task, key, with_images)

    def _choose(self, name: str | None, task: Task, key: Key | None, with_images: bool) -> ModelEntry:
        if name is not None and self._means_default(name):
            name = None
        if key is None or key.models is None:
            return self.catalog.choose(name, task, with_images=with_images)
        if name is None:
            first = first_able((e for e in self.catalog.entries() if key.may_use(e.name)), task, with_images)
            if first is None:
                raise Forbidden(f"this key may use no model that does {task}: ask for another key", "model")
            name = first.name
        if not key.may_use(name):
            self.catalog.find(name)  # what doesn't exist is told as for every key
            wrong = f"this key may not use model '{name}'{nearest_hint(name, sorted(key.models))}"
            raise Forbidden(wrong, "model").about(name)
        return self.catalog.choose(name, task, with_images=with_images)

    def _means_default(self, name: str) -> bool:
        """Whether it is a stand-in. The hub's client for Node names the address that it was given for a model."""
        is_stand_in = name in self.config.default_model_names or name.startswith(("http://", "https://"))
        return is_stand_in and not self._is_known(name)

    def _is_known(self, name: str) -> bool:
        try:
            self.catalog.find(name)
        except UnknownModel:
            return False
        return True

    def visible(self, key: Key | None) -> list[ModelEntry]:
        """The models that this key may use."""
        return [entry for entry in self.catalog.entries() if key is None or key.may_use(entry.name)]

    async def answer(self, request: GenerationRequest, key: Key | None) -> tuple[Chunk, ...]:
        """The whole answer, once it is the request's turn. Raises what `Admission` and the handle do."""
        with self._discreetly(key):
            async with self.admission.admitted(request, key) as admitted:
                with self._charging(request, key) as charge:
                    chunks = await self.handle.answer(admitted)
                    charge.tokens = chunks[0].num_prompt_tokens + sum(chunk.num_tokens for chunk in chunks)
        return chunks

    async def stream(
        self, request: GenerationRequest, encoder: EventEncoder, write: Write, key: Key | None
    ) -> StreamTotal:
        """The answer's events to `write`, once it is the request's turn. Raises as `answer` does."""
        with self._discreetly(key):
            async with self.admission.admitted(request, key) as admitted:
                with self._charging(request, key) as charge:
                    total = await self.handle.stream(admitted, encoder, charge.counting(write))
                    charge.tokens = total.num_prompt_tokens + total.num_tokens
        return total

    async def tokenize(self, request: GenerationRequest, key: Key | None) -> TokenizedPrompt:
        """The prompt that the request would make, once it is the request's turn. Raises as `answer` does."""
        with self._discreetly(key):
            async with self.admission.admitted(request, key, generates=False) as admitted:
                return await self.handle.tokenize(admitted)

    def tells_all(self, key: Key | None) -> bool:
        """Whether whoever has this key runs the service: an administrator, and everybody where there are no keys."""
        return self.keys.is_open if key is None else key.is_admin

    @contextmanager
    def _discreetly(self, key: Key | None) -> Iterator[None]:
        """A model that isn't ready is told without the reason to those who don't run the service."""
        try:
            yield
        except ModelNotReady as exc:
            if self.tells_all(key):
                raise
            raise exc.for_strangers() from None

    @contextmanager
    def _charging(self, request: GenerationRequest, key: Key | None) -> Iterator["_Charge"]:
        """Charge the key for the block's tokens; for those of an answer that is broken off by guess."""
        charge = _Charge(is_counting=key is not None and key.tokens_per_minute is not None)
        try:
            yield charge
        except (asyncio.CancelledError, ServeAppError) as exc:
            if charge.num_writes or isinstance(exc, asyncio.CancelledError | DeadlineExceeded):
                charge.tokens = estimated_tokens(request) + charge.num_writes
            raise
        finally:
            if key is not None and charge.is_counting:
                self.budget.spend_tokens(key, charge.tokens)

    async def count_images(self, key: Key | None, num_images: int) -> None:
        """Raises `RateLimited` where they are more than the key has left."""
        if key is not None and num_images:
            await self.budget.take(key, images=num_images)

    async def load_image(self, model: ModelEntry, source: ImageSource, param: str) -> RgbImage:
        """An image from a stranger as safe pixels, as many as the model uses, timed and counted.

        Raises the image gate's errors.
        """
        edge = model.description.image_edge if model.description else None
        with self.metrics.image(model.name):
            return await self.images.load(source, param, edge)


class _Charge:
    """What an answer costs: `tokens` once they are known. Until then its pieces are counted, about a token each."""

    def __init__(self, is_counting: bool) -> None:
        self.is_counting = is_counting
        self.tokens = self.num_writes = 0

    def counting(self, write: Write) -> Write:
        def counted(events: bytes) -> None:
            self.num_writes += 1
            write(events)

        return counted if self.is_counting else write

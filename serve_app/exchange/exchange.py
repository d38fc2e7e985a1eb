"""What a handler gets: one request of one client, and all that it may ask of the lane for it.

A handler reads the body, chooses a model, and answers or streams before it returns, so that whatever it opened is
closed at a known place. Limits, charges and counts happen in here.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from starlette.types import Receive, Scope, Send

from serve_app.access.admission import estimated_tokens
from serve_app.access.keys import Key
from serve_app.errors import DeadlineExceeded, ModelNotReady, ServeAppError, TooManyImages, UnsupportedMediaType
from serve_app.exchange.all_at_once import all_at_once
from serve_app.exchange.body import Body
from serve_app.exchange.connection import Connection
from serve_app.exchange.dialect import SERVICE, Dialect
from serve_app.exchange.field_names import in_clients_words
from serve_app.exchange.lane import Lane
from serve_app.exchange.lane_secret import DRAWN_HEADER, is_secret
from serve_app.exchange.off_loop import off_loop
from serve_app.exchange.validation import parse_json, validate
from serve_app.images.gate import ImageSource
from serve_app.messages import (
    Chunk,
    EventEncoder,
    GenerationRequest,
    Message,
    RawPrompt,
    RgbImage,
    Sampling,
    StreamTotal,
    Task,
    TokenizedPrompt,
    ToolUse,
    Write,
)
from serve_app.metrics.specs import OK
from serve_app.models.entry import ModelEntry

logger = logging.getLogger("serve_app")

Handler = Callable[["Exchange"], Awaitable[None]]
B = TypeVar("B", bound=Body)
T = TypeVar("T")

# curl's `-d` and clients that send no type mean JSON. A body of any other type is refused.
_JSON_TYPES = frozenset({
    "", "application/json", "text/json", "application/octet-stream", "application/x-www-form-urlencoded",
})  # fmt: skip
_NO_NAMES: Mapping[str, str] = {}


class Exchange(Connection):
    """A connection with a lane behind it. `key` is None where the service is open to all.

    `names` of the methods that generate maps an engine's names of request fields to the client's, for errors.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, lane: Lane, dialect: Dialect = SERVICE) -> None:
        self.lane = lane
        self.tracker = lane.metrics.request()
        self.key: Key | None = None
        self.model = ""
        self.num_tokens = 0
        self.outcome = OK
        super().__init__(scope, receive, send, lane.config, self.tracker, dialect)

    def set_model(self, name: str) -> None:
        """The model that answers: the metrics' label and the log line's field."""
        self.model = name
        self.tracker.set_model(name)

    def choose(self, name: str | None, task: Task, *, with_images: bool = False) -> ModelEntry:
        """The model that answers from here on. Raises what `Lane.choose` does."""
        model = self.lane.choose(name, task, self.key, with_images=with_images, drawn=self._drawn(name))
        self.set_model(model.name)
        return model

    def _drawn(self, name: str | None) -> str | None:
        """The model that HAProxy has drawn for this name, if it has."""
        words = self.request.headers.get(DRAWN_HEADER, "").split(" ")
        if len(words) != 3 or words[1] != name or not is_secret(words[0], self.lane.secret):
            return None
        return words[2]

    async def read_json(self, body: type[B]) -> B:
        """The validated body. Raises `InvalidRequest`, `UnsupportedMediaType`, and what `read_body` does."""
        data = await self.read_body()
        self.require_json()
        return await off_loop(len(data), parse_json, data, body, self.ignored_fields)

    def require_json(self) -> None:
        """Raise `UnsupportedMediaType` where the request says that its body is something else."""
        declared = self.request.headers.get("content-type", "")
        media_type = declared.partition(";")[0].partition(",")[0].strip().lower()
        if media_type not in _JSON_TYPES and not media_type.endswith("+json"):
            raise UnsupportedMediaType(
                f"Content-Type '{media_type[:100]}' isn't taken here: send JSON as application/json", "Content-Type"
            )

    async def validated(self, values: dict[str, Any], body: type[B]) -> B:
        """The values of this request's body as a `body`. Raises `InvalidRequest`."""
        return await off_loop(
            self.num_body_bytes, lambda: validate(values, body, strict=True, ignored=self.ignored_fields)
        )

    async def count_answers(self, num_answers: int) -> None:
        """Count the answers to all prompts and images of this request, before any of them is begun.

        Raises `RateLimited` where the key has fewer requests left.
        """
        if self.key is not None and num_answers > 1:  # the first was counted on arrival
            self.limit_headers = await self.lane.budget.take(self.key, requests=num_answers - 1, counted=1)

    async def count_retry(self) -> None:
        """Count one more answer, which was not foreseen. Raises as `count_answers` does."""
        if self.key is not None:
            self.limit_headers = await self.lane.budget.take(self.key, requests=1)

    async def count_images(self, num_images: int) -> None:
        """Raises `RateLimited` where they are more than the key has left."""
        if self.key is not None and num_images:
            await self.lane.budget.take(self.key, images=num_images)

    async def load_images(
        self, model: ModelEntry, sources: Sequence[ImageSource], params: Sequence[str], field: str
    ) -> list[RgbImage]:
        """One prompt's images, all at once; the first that fails ends the others. Raises what is wrong with them.

        `params` name each image in the client's spelling, `field` the part of the body that has them all.
        """
        if not sources:
            return []
        model.require_images(params[0])
        limit = self.lane.config.max_images_per_request
        if len(sources) > limit:
            raise TooManyImages(f"{field}: {len(sources)} images, and a request takes {limit}: send fewer", field)
        await self.count_images(len(sources))

        async def load(index: int) -> RgbImage:
            return await self.lane.load_image(model, sources[index], params[index])

        return await self._in_time(all_at_once(load, len(sources)))

    async def load_image(self, model: ModelEntry, source: ImageSource, param: str) -> RgbImage:
        """One image, in the time that the request has left. Raises the image gate's errors."""
        return await self._in_time(self.lane.load_image(model, source, param))

    def generation(
        self,
        model: ModelEntry,
        messages: tuple[Message, ...],
        sampling: Sampling,
        *,
        part: str = "",
        raw: RawPrompt | None = None,
        tool_use: ToolUse | None = None,
        template_args: str = "",
    ) -> GenerationRequest:
        """The request to an engine. `part` ends its id, where an exchange has several generations."""
        return GenerationRequest(
            id=self.id + part,
            model=model.name,
            messages=messages,
            sampling=sampling,
            timeout_s=self.remaining_s,
            raw=raw,
            tool_use=tool_use,
            template_args=template_args,
        )

    async def answer(self, request: GenerationRequest, names: Mapping[str, str] = _NO_NAMES) -> tuple[Chunk, ...]:
        """The whole answer, once it is the request's turn. Raises what `Admission` and the handle do."""
        async with self._turn(request, names) as admitted:
            with self._charging(request) as charge:
                chunks = await self.lane.handle.answer(admitted)
                num_tokens = sum(chunk.num_tokens for chunk in chunks)
                charge.tokens = chunks[0].num_prompt_tokens + num_tokens
        self._count_tokens(num_tokens)
        return chunks

    async def stream(
        self, request: GenerationRequest, encoder: EventEncoder, write: Write, names: Mapping[str, str] = _NO_NAMES
    ) -> StreamTotal:
        """The answer's events to `write`, once it is the request's turn. Raises as `answer` does."""
        async with self._turn(request, names) as admitted:
            with self._charging(request) as charge:
                total = await self.lane.handle.stream(admitted, encoder, charge.counting(write))
                charge.tokens = total.num_prompt_tokens + total.num_tokens
        self._count_tokens(total.num_tokens)
        return total

    async def send_stream(
        self, request: GenerationRequest, encoder: EventEncoder, names: Mapping[str, str] = _NO_NAMES
    ) -> None:
        """Answer the client with this one stream."""

        async def produce(write: Write) -> None:
            await self.stream(request, encoder, write, names)

        await self.send_events(produce)

    async def tokenize(self, request: GenerationRequest, names: Mapping[str, str] = _NO_NAMES) -> TokenizedPrompt:
        """The prompt that the request would make, once it is the request's turn. Raises as `answer` does."""
        async with self._turn(request, names, generates=False) as admitted:
            return await self.lane.handle.tokenize(admitted)

    def log(self) -> None:
        """One line a request; never a header, a prompt or an image."""
        logger.info(
            "request id=%s model=%s status=%s outcome=%s seconds=%.3f tokens=%d",
            self.id, self.model or "-", self.status or "-", self.outcome, self.elapsed_s, self.num_tokens,
        )  # fmt: skip

    def _count_tokens(self, num_tokens: int) -> None:
        self.tracker.first_token()  # of an answer that isn't streamed; of a stream it came before
        self.num_tokens += num_tokens

    async def _in_time(self, images: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.remaining_s) as limit:
                return await images
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise DeadlineExceeded(
                f"its images weren't there within {self.timeout_s:g} s: use a faster server, or allow more time"
            ) from exc

    @asynccontextmanager
    async def _turn(
        self, request: GenerationRequest, names: Mapping[str, str], *, generates: bool = True
    ) -> AsyncIterator[GenerationRequest]:
        """Run the block once it is the request's turn; its errors name fields as the client does."""
        with in_clients_words(names):
            try:
                async with self.lane.admission.admitted(request, self.key, generates=generates) as admitted:
                    yield admitted
            except ModelNotReady as exc:
                raise self.lane.discreet(exc, self.key) from None

    @contextmanager
    def _charging(self, request: GenerationRequest) -> Iterator["_Charge"]:
        """Charge the key for the block's tokens; the tokens of an answer that was broken off are estimated."""
        key = self.key
        charge = _Charge(is_counting=key is not None and key.tokens_per_minute is not None)
        try:
            yield charge
        except (asyncio.CancelledError, ServeAppError) as exc:
            if charge.num_writes or isinstance(exc, asyncio.CancelledError | DeadlineExceeded):
                charge.tokens = estimated_tokens(request) + charge.num_writes
            raise
        finally:
            if key is not None and charge.is_counting:
                self.lane.budget.spend_tokens(key, charge.tokens)


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

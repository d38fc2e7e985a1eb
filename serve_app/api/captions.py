"""Our own dialect: `POST /v1/captions`, pictures in and captions out.

One picture or several, as JSON (URL, data URI or base64) or as a multipart upload. Each picture is its own
generation, all at once; a bad picture has its own error and never shifts another's caption.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.api.all_at_once import all_at_once
from serve_app.api.caption_body import CaptionRequest, read_caption_request
from serve_app.api.exchange import DONE_EVENT, Exchange, event_bytes
from serve_app.api.lane import Lane, ModelEntry
from serve_app.api.usage import Usage
from serve_app.errors import ClientTooSlow, ServeAppError, TooManyImages, error_json
from serve_app.families import caption_prompt
from serve_app.messages import Chunk, FinishReason, GenerationRequest, Message, Text, Write, merged


@dataclass(frozen=True, slots=True)
class Caption:
    """A finished caption of the picture at `index`."""

    index: int
    text: str
    prompt: str
    finish_reason: FinishReason | None
    usage: Usage

    @classmethod
    def of(cls, index: int, prompt: str, whole: Chunk) -> "Caption":
        """From the one chunk that says a whole answer."""
        return cls(index, whole.text, prompt, whole.finish_reason, Usage.of([whole]))

    def as_json(self) -> dict[str, Any]:
        return {
            "object": "caption",
            "index": self.index,
            "caption": self.text.strip(),
            "prompt": self.prompt,
            "finish_reason": self.finish_reason,
            "usage": self.usage.as_json(),
        }


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the picture at `index` has no caption."""

    index: int
    error: ServeAppError

    def as_json(self) -> dict[str, Any]:
        return {"object": "error", "index": self.index} | error_json(self.error)


Outcome = Caption | Failure


class CaptionEvents:
    """The events of one picture's streamed caption, as `EventEncoder` wants them: its pieces, then the whole."""

    def __init__(self, index: int, prompt: str) -> None:
        self._index = index
        self._prompt = prompt
        self._chunks: list[Chunk] = []

    def encode(self, chunk: Chunk) -> bytes:
        self._chunks.append(chunk)
        if not chunk.text:
            return b""
        return event_bytes({"object": "caption.chunk", "index": self._index, "delta": chunk.text})

    def end(self) -> bytes:
        return event_bytes(Caption.of(self._index, self._prompt, merged(self._chunks)[0]).as_json())


async def create_captions(exchange: Exchange, lane: Lane) -> None:
    """`POST /v1/captions`, JSON or multipart, streamed or not."""
    wanted = await read_caption_request(exchange, lane.config.max_images_per_request)
    model = lane.choose(wanted.model, "caption", exchange.key)
    exchange.set_model(model.name)
    if len(wanted.sources) > lane.config.max_images_per_request:
        raise TooManyImages(
            f"images: {len(wanted.sources)} pictures, and a request takes {lane.config.max_images_per_request}: "
            "send several requests", "images",
        )  # fmt: skip
    model.require_pictures(wanted.params[0])
    await lane.count_images(exchange.key, len(wanted.sources))
    task = CaptionTask(exchange, lane, model, wanted)
    if wanted.stream:
        await exchange.send_events(task.stream)
    else:
        await exchange.send_json(_answer(exchange, model.name, await task.outcomes()))


class CaptionTask:
    """The pictures of one request, each captioned apart from the others, all at once."""

    def __init__(self, exchange: Exchange, lane: Lane, model: ModelEntry, wanted: CaptionRequest) -> None:
        self._exchange = exchange
        self._lane = lane
        self._model = model
        self._wanted = wanted
        family = model.description.family if model.description else "generic"
        self._prompt = wanted.prompt or caption_prompt(family, wanted.style)

    async def outcomes(self) -> list[Outcome]:
        """Every picture's caption or failure, in order. Raises where no picture has a caption."""

        async def outcome(index: int) -> Outcome:
            try:
                chunks = await self._lane.answer(await self._request(index), self._exchange.key)
            except ServeAppError as error:
                return Failure(index, error)
            self._exchange.count_tokens(chunks[0].num_tokens)
            return Caption.of(index, self._prompt, chunks[0])

        found = await all_at_once(outcome, len(self._wanted.sources))
        failures = [one for one in found if isinstance(one, Failure)]
        if len(failures) == len(found):
            raise _no_caption(failures)
        return found

    async def stream(self, write: Write) -> None:
        """Every picture's events as they come, and `[DONE]`. Raises where no picture has a caption.

        Failures before the first caption has begun wait for it: until then the answer may still be an error.
        """
        early: list[Failure] = []
        has_begun = False

        def begin(data: bytes) -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                for failure in early:
                    write(event_bytes(failure.as_json()))
            write(data)

        async def caption(index: int) -> None:
            try:
                encoder = CaptionEvents(index, self._prompt)
                request = await self._request(index)
                total = await self._lane.stream(request, encoder, begin, self._exchange.key)
                self._exchange.count_tokens(total.num_tokens)
            except ClientTooSlow:
                raise
            except ServeAppError as error:
                failure = Failure(index, error)
                if has_begun:
                    write(event_bytes(failure.as_json()))
                else:
                    early.append(failure)

        await all_at_once(caption, len(self._wanted.sources))
        if not has_begun:
            raise _no_caption(sorted(early, key=lambda failure: failure.index))
        write(DONE_EVENT)

    async def _request(self, index: int) -> GenerationRequest:
        source, param = self._wanted.sources[index], self._wanted.params[index]
        picture = await self._exchange.in_time(self._lane.load_picture(self._model, source, param))
        return GenerationRequest(
            id=f"{self._exchange.id}-{index}",
            model=self._model.name,
            messages=(Message("user", (picture, Text(self._prompt))),),
            sampling=self._wanted.sampling,
            timeout_s=self._exchange.remaining_s,
        )


def _no_caption(failures: Sequence[Failure]) -> ServeAppError:
    """The first picture's error; it says so where there were several pictures."""
    first = failures[0].error
    if len(failures) == 1:
        return first
    message = f"none of the {len(failures)} pictures could be captioned; the first error: {first.message}"
    return type(first)(message, first.param, first.retry_after_s)


def _answer(exchange: Exchange, model: str, outcomes: list[Outcome]) -> dict[str, Any]:
    usages = [outcome.usage for outcome in outcomes if isinstance(outcome, Caption)]
    return {
        "id": f"cap-{exchange.id}",
        "object": "list",
        "created": exchange.created_s,
        "model": model,
        "data": [outcome.as_json() for outcome in outcomes],
        "usage": Usage.total(usages).as_json(),
    }

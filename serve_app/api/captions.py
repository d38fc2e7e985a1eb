"""Our own dialect: `POST /v1/captions`, pictures in and captions out.

One picture or several, as JSON (URL, data URI or base64) or as a multipart upload. Each picture is its own
generation, all at once; a bad picture has its own error and never shifts another's caption.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, model_validator
from starlette.datastructures import UploadFile

from serve_app.api.body import Body, parse_json, validate
from serve_app.api.chat_body import SamplingBody
from serve_app.api.exchange import DONE_EVENT, Exchange, error_json, event_bytes
from serve_app.api.lane import Lane, ModelEntry
from serve_app.api.usage import Usage
from serve_app.errors import ClientTooSlow, InvalidRequest, ServeAppError, TooManyImages
from serve_app.families import Style, caption_prompt
from serve_app.images import ImageBase64, ImageBytes, ImageSource, ImageUrl, source_from_text
from serve_app.messages import Chunk, FinishReason, GenerationRequest, Message, Sampling, Text, Write, merged

T = TypeVar("T")


class ImageObject(Body):
    """A picture by exactly one of its address (http, https or data) and its base64 bytes."""

    url: str | None = None
    b64: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "ImageObject":
        if (self.url is None) == (self.b64 is None):
            raise ValueError("give exactly one of 'url' and 'b64'")
        return self

    def source(self) -> ImageSource:
        return ImageUrl(self.url) if self.url is not None else ImageBase64(self.b64 or "")


def _object_from_text(value: Any) -> Any:
    """A bare string is an address if it has a scheme, base64 otherwise."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, str):
        raise ValueError('send an address, a data URI or base64, or {"url": …} or {"b64": …}')
    return {"url" if isinstance(source_from_text(value), ImageUrl) else "b64": value}


Image = Annotated[ImageObject, BeforeValidator(_object_from_text)]


class CaptionBody(SamplingBody):
    """The body of `POST /v1/captions`. `prompt` overrides `style`; the default temperature is 0, greedy."""

    model: str | None = None
    image: Image | None = None
    images: list[Image] | None = Field(None, min_length=1)
    style: Style = "short"
    prompt: str | None = Field(None, min_length=1)
    temperature: float | None = Field(0.0, ge=0, le=2)
    stream: bool = False

    @model_validator(mode="after")
    def _image_or_images(self) -> "CaptionBody":
        if (self.image is None) == (self.images is None):
            raise ValueError("send exactly one of 'image' (one picture) and 'images' (a list)")
        return self


class CaptionForm(SamplingBody):
    """The multipart form's fields beside the uploaded `image` files."""

    model: str | None = None
    style: Style = "short"
    prompt: str | None = Field(None, min_length=1)
    temperature: float | None = Field(0.0, ge=0, le=2)
    stream: bool = False


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """What both encodings of the request come to; `params` name each picture in the client's spelling."""

    model: str | None
    sources: list[ImageSource]
    params: list[str]
    style: Style
    prompt: str | None
    sampling: Sampling
    stream: bool


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
    wanted = await _read(exchange, lane)
    model = lane.catalog.choose(wanted.model, "caption")
    exchange.set_model(model.name)
    if len(wanted.sources) > lane.config.max_images_per_request:
        raise TooManyImages(
            f"images: {len(wanted.sources)} pictures, and a request takes {lane.config.max_images_per_request}: "
            "send several requests", "images",
        )  # fmt: skip
    model.require_pictures(wanted.params[0])
    task = CaptionTask(exchange, lane, model, wanted)
    if wanted.stream:
        await exchange.send_events(task.stream)
    else:
        await exchange.send_json(_answer(exchange, model.name, await task.outcomes()))


async def _read(exchange: Exchange, lane: Lane) -> CaptionRequest:
    content_type = exchange.request.headers.get("content-type", "").lower()
    if content_type.startswith("multipart/form-data"):
        return await _read_form(exchange, lane)
    body = parse_json(await exchange.read_body(), CaptionBody)
    if body.images is not None:
        images, params = body.images, [f"images[{i}]" for i in range(len(body.images))]
    else:
        assert body.image is not None, "validated above"
        images, params = [body.image], ["image"]
    return _request(body, [image.source() for image in images], params)


async def _read_form(exchange: Exchange, lane: Lane) -> CaptionRequest:
    # One file above the limit is let in, so that the error is ours and says how many came.
    form = await exchange.read_form(max_files=lane.config.max_images_per_request * 8)
    try:
        uploads = [value for value in form.getlist("image") if isinstance(value, UploadFile)]
        if not uploads:
            raise InvalidRequest("image: no file was uploaded: send the picture as a form file 'image'", "image")
        sources: list[ImageSource] = [ImageBytes(await upload.read()) for upload in uploads]
        values = {key: value for key, value in form.multi_items() if not isinstance(value, UploadFile)}
    finally:
        await form.close()
    params = [f"image[{i}]" for i in range(len(sources))] if len(sources) > 1 else ["image"]
    return _request(validate(values, CaptionForm, strict=False), sources, params)


def _request(body: CaptionBody | CaptionForm, sources: list[ImageSource], params: list[str]) -> CaptionRequest:
    sampling = Sampling(
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        stop=tuple(body.stop or ()),
        seed=body.seed,
    )
    return CaptionRequest(body.model, sources, params, body.style, body.prompt, sampling, body.stream)


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
                chunks = await self._lane.handle.answer(await self._request(index))
            except ServeAppError as error:
                return Failure(index, error)
            self._exchange.count_tokens(chunks[0].num_tokens)
            return Caption.of(index, self._prompt, chunks[0])

        found = await _all_at_once(outcome, len(self._wanted.sources))
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
                total = await self._lane.handle.stream(await self._request(index), encoder, begin)
                self._exchange.count_tokens(total.num_tokens)
            except ClientTooSlow:
                raise
            except ServeAppError as error:
                failure = Failure(index, error)
                if has_begun:
                    write(event_bytes(failure.as_json()))
                else:
                    early.append(failure)

        await _all_at_once(caption, len(self._wanted.sources))
        if not has_begun:
            raise _no_caption(sorted(early, key=lambda failure: failure.index))
        write(DONE_EVENT)

    async def _request(self, index: int) -> GenerationRequest:
        source, param = self._wanted.sources[index], self._wanted.params[index]
        picture = await self._lane.load_picture(self._model, source, param)
        return GenerationRequest(
            id=f"{self._exchange.id}-{index}",
            model=self._model.name,
            messages=(Message("user", (picture, Text(self._prompt))),),
            sampling=self._wanted.sampling,
            timeout_s=self._exchange.remaining_s(self._lane.config.request_timeout_s),
        )


async def _all_at_once(do: Callable[[int], Coroutine[Any, Any, T]], count: int) -> list[T]:
    """What `do` gives for 0 to count - 1. The first that raises ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(do(index)) for index in range(count)]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]


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

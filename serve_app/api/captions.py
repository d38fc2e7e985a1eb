"""Our own dialect: `POST /v1/captions`, pictures in and captions out.

One picture or several, as JSON (URL, data URI or base64) or as a multipart upload. Each picture is its own
generation, all at once; a bad picture has its own error and never shifts another's caption.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from starlette.datastructures import UploadFile

from serve_app.api.body import Body, parse_json, validate
from serve_app.api.chat_body import SamplingBody
from serve_app.api.exchange import DONE_EVENT, Exchange, error_json, event_bytes
from serve_app.api.lane import Lane, ModelEntry
from serve_app.api.usage import Usage
from serve_app.errors import InvalidRequest, ServeAppError, TooManyImages
from serve_app.families import Style, caption_prompt
from serve_app.images import ImageBase64, ImageBytes, ImageSource, ImageUrl, source_from_text
from serve_app.messages import Chunk, FinishReason, GenerationRequest, Message, Sampling, Text


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
class Delta:
    """A piece of the caption of the picture at `index`."""

    index: int
    text: str

    def as_json(self) -> dict[str, Any]:
        return {"object": "caption.chunk", "index": self.index, "delta": self.text}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the picture at `index` has no caption."""

    index: int
    error: ServeAppError

    def as_json(self) -> dict[str, Any]:
        return {"object": "error", "index": self.index} | error_json(self.error)


Outcome = Caption | Delta | Failure


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
    async with aclosing(_caption_all(exchange, lane, model, wanted)) as outcomes:
        begun = await _until_one_succeeds(outcomes, len(wanted.sources))
        if wanted.stream:
            await exchange.send_events(_caption_events(begun, outcomes))
        else:
            rest = [outcome async for outcome in outcomes]
            await exchange.send_json(_answer(exchange, model.name, [*begun, *rest]))


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


async def _caption_all(
    exchange: Exchange, lane: Lane, model: ModelEntry, wanted: CaptionRequest
) -> AsyncGenerator[Outcome, None]:
    """The outcomes of all pictures as they come; closing it ends the work on every picture."""
    family = model.description.family if model.description else "generic"
    prompt = wanted.prompt or caption_prompt(family, wanted.style)
    outcomes: asyncio.Queue[Outcome | asyncio.Task[None]] = asyncio.Queue()

    async def caption(index: int) -> None:
        try:
            await _caption_one(exchange, lane, model, wanted, prompt, index, outcomes.put_nowait)
        except ServeAppError as error:
            outcomes.put_nowait(Failure(index, error))

    def surface_bug(task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and task.exception() is not None:
            outcomes.put_nowait(task)

    tasks = [asyncio.create_task(caption(index)) for index in range(len(wanted.sources))]
    for task in tasks:
        task.add_done_callback(surface_bug)
    try:
        num_open = len(tasks)
        while num_open:
            outcome = await outcomes.get()
            if isinstance(outcome, asyncio.Task):
                await outcome  # raises what it raised
                continue
            num_open -= not isinstance(outcome, Delta)
            yield outcome
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _caption_one(
    exchange: Exchange,
    lane: Lane,
    model: ModelEntry,
    wanted: CaptionRequest,
    prompt: str,
    index: int,
    put: Callable[[Outcome], None],
) -> None:
    picture = await lane.load_picture(model.name, wanted.sources[index], wanted.params[index])
    request = GenerationRequest(
        id=f"{exchange.id}-{index}",
        model=model.name,
        messages=(Message("user", (picture, Text(prompt))),),
        sampling=wanted.sampling,
        timeout_s=exchange.remaining_s(lane.config.request_timeout_s),
    )
    chunks: list[Chunk] = []
    async with aclosing(exchange.counted(lane.generator.generate(request))) as stream:
        async for chunk in stream:
            chunks.append(chunk)
            if wanted.stream and chunk.text:
                put(Delta(index, chunk.text))
    text = "".join(chunk.text for chunk in chunks)
    put(Caption(index, text, prompt, chunks[-1].finish_reason, Usage.of(chunks)))


async def _until_one_succeeds(outcomes: AsyncIterator[Outcome], num_pictures: int) -> list[Outcome]:
    """What comes up to the first success. Raises the first picture's error where every picture failed."""
    begun: list[Outcome] = []
    async for outcome in outcomes:
        begun.append(outcome)
        if not isinstance(outcome, Failure):
            return begun
    failures = sorted((o for o in begun if isinstance(o, Failure)), key=lambda failure: failure.index)
    first = failures[0].error
    if num_pictures == 1:
        raise first
    message = f"none of the {num_pictures} pictures could be captioned; the first error: {first.message}"
    raise type(first)(message, first.param, first.retry_after_s)


async def _caption_events(begun: list[Outcome], rest: AsyncIterator[Outcome]) -> AsyncIterator[bytes]:
    for outcome in begun:
        yield event_bytes(outcome.as_json())
    async for outcome in rest:
        yield event_bytes(outcome.as_json())
    yield DONE_EVENT


def _answer(exchange: Exchange, model: str, outcomes: list[Outcome]) -> dict[str, Any]:
    data = sorted((o for o in outcomes if not isinstance(o, Delta)), key=lambda outcome: outcome.index)
    usages = [outcome.usage for outcome in data if isinstance(outcome, Caption)]
    return {
        "id": f"cap-{exchange.id}",
        "object": "list",
        "created": exchange.created_s,
        "model": model,
        "data": [outcome.as_json() for outcome in data],
        "usage": Usage.total(usages).as_json(),
    }

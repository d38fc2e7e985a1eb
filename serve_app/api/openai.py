"""OpenAI's dialect: `/v1/chat/completions` and `/v1/models`.

Shapes follow https://platform.openai.com/docs/api-reference/chat and /models. What can't be honoured is a
400 that names the field; nothing is ignored in silence.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from serve_app.api.body import Body, parse_json
from serve_app.api.exchange import DONE_EVENT, Exchange, event_bytes
from serve_app.api.lane import Lane
from serve_app.errors import InvalidRequest, TooManyImages
from serve_app.images import ImageSource, source_from_text
from serve_app.messages import Chunk, FinishReason, GenerationRequest, Message, Picture, Role, Sampling, Text


class TextPart(Body):
    type: Literal["text"]
    text: str


class ImageAddress(Body):
    url: str
    detail: Literal["auto", "low", "high"] | None = None  # OpenAI's cost hint: every model here sees one size


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: Annotated[ImageAddress, BeforeValidator(lambda v: {"url": v} if isinstance(v, str) else v)]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(Body):
    """A turn; `content` is a string or a list of parts. `developer` is OpenAI's newer word for `system`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "refusal": (None,),
        "audio": (None,),
        "tool_calls": (None, []),
        "function_call": (None,),
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[Part], BeforeValidator(lambda v: [{"type": "text", "text": v}] if isinstance(v, str) else v)
    ]
    name: str | None = None


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False  # OpenAI's padding against traffic analysis; this service adds none


class SamplingBody(Body):
    """The sampling fields that every dialect with OpenAI's names shares."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[str] | None, BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = None

    @field_validator("stop")
    @classmethod
    def _few_and_not_empty(cls, stop: list[str] | None) -> list[str] | None:
        if stop is not None and (len(stop) > 16 or not all(stop)):
            raise ValueError("takes up to 16 strings, none of them empty")
        return stop


class ChatBody(SamplingBody):
    """The body of `POST /v1/chat/completions`. `model` left out means the default chat model."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "n": (None, 1),
        "frequency_penalty": (None, 0),
        "presence_penalty": (None, 0),
        "logit_bias": (None, {}),
        "logprobs": (None, False),
        "top_logprobs": (None, 0),
        "response_format": (None, {"type": "text"}),
        "tools": (None, []),
        "tool_choice": (None, "none", "auto"),
        "parallel_tool_calls": (None, True, False),
        "modalities": (None, ["text"]),
        "audio": (None,),
        "functions": (None, []),
        "function_call": (None, "none", "auto"),
        "service_tier": (None, "auto", "default"),
        "store": (None, False),
    }

    model: str | None = None
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="after")
    def _not_contradictory(self) -> "ChatBody":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only allowed with stream=true")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise ValueError(
                f"max_tokens is {self.max_tokens} and max_completion_tokens is {self.max_completion_tokens}: "
                "send one of them"
            )
        return self

    def sampling(self) -> Sampling:
        return Sampling(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stop=tuple(self.stop or ()),
            seed=self.seed,
        )


async def create_chat_completion(exchange: Exchange, lane: Lane) -> None:
    """`POST /v1/chat/completions`, streamed or not."""
    body = parse_json(await exchange.read_body(), ChatBody)
    model = lane.catalog.choose(body.model, "chat")
    exchange.set_model(model.name)
    image_params = _image_params(body)
    if image_params:
        model.require_pictures(image_params[0])
    if len(image_params) > lane.config.max_images_per_request:
        raise TooManyImages(
            f"messages: {len(image_params)} pictures, and a request takes {lane.config.max_images_per_request}: "
            "send fewer", "messages",
        )  # fmt: skip
    request = GenerationRequest(
        id=exchange.id,
        model=model.name,
        messages=await _load_messages(body, lane, model.name),
        sampling=body.sampling(),
        timeout_s=exchange.remaining_s(lane.config.request_timeout_s),
    )
    async with aclosing(exchange.counted(lane.generator.generate(request))) as chunks:
        if body.stream:
            first = await anext(chunks)  # before the headers, so that early failures have a real status
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            await exchange.send_events(_chat_events(exchange, model.name, first, chunks, include_usage))
        else:
            await exchange.send_json(_completion(exchange, model.name, [chunk async for chunk in chunks]))


async def list_models(exchange: Exchange, lane: Lane) -> None:
    """`GET /v1/models`: OpenAI's list, each model with its state, tasks, engine and context length."""
    await exchange.send_json({"object": "list", "data": [e.as_json() for e in lane.catalog.entries()]})


async def retrieve_model(exchange: Exchange, lane: Lane) -> None:
    """`GET /v1/models/{id}`; ids may contain slashes."""
    await exchange.send_json(lane.catalog.find(exchange.request.path_params["id"]).as_json())


def usage_json(num_prompt_tokens: int, num_tokens: int) -> dict[str, int]:
    """OpenAI's usage object."""
    return {
        "prompt_tokens": num_prompt_tokens,
        "completion_tokens": num_tokens,
        "total_tokens": num_prompt_tokens + num_tokens,
    }


def _image_params(body: ChatBody) -> list[str]:
    """Where each picture stands in the body, in the client's spelling."""
    return [
        f"messages[{i}].content[{j}].image_url"
        for i, message in enumerate(body.messages)
        for j, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]


async def _load_messages(body: ChatBody, lane: Lane, model: str) -> tuple[Message, ...]:
    if all(not part.text for m in body.messages for part in m.content if isinstance(part, TextPart)) and not (
        _image_params(body)
    ):
        raise InvalidRequest("messages: every message is empty: say something", "messages")
    sources = [
        source_from_text(part.image_url.url)
        for m in body.messages
        for part in m.content
        if isinstance(part, ImagePart)
    ]
    pictures = iter(await _load_pictures(lane, model, sources, _image_params(body)))
    return tuple(
        Message(role=_role(m.role), parts=tuple(_part(part, pictures) for part in m.content)) for m in body.messages
    )


async def _load_pictures(lane: Lane, model: str, sources: list[ImageSource], params: list[str]) -> list[Picture]:
    """All at once; the first that fails ends the others."""
    tasks = [asyncio.create_task(lane.load_picture(model, *pair)) for pair in zip(sources, params, strict=True)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _part(part: TextPart | ImagePart, pictures: Iterator[Picture]) -> Text | Picture:
    return Text(part.text) if isinstance(part, TextPart) else next(pictures)


def _role(role: Literal["system", "developer", "user", "assistant"]) -> Role:
    return "system" if role == "developer" else role


def _completion(exchange: Exchange, model: str, chunks: list[Chunk]) -> dict[str, Any]:
    message = {"role": "assistant", "content": "".join(chunk.text for chunk in chunks), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": chunks[-1].finish_reason}
    return {
        "id": f"chatcmpl-{exchange.id}",
        "object": "chat.completion",
        "created": exchange.created_s,
        "model": model,
        "choices": [choice],
        "usage": usage_json(chunks[-1].num_prompt_tokens, sum(chunk.num_tokens for chunk in chunks)),
    }


async def _chat_events(
    exchange: Exchange, model: str, first: Chunk, rest: AsyncGenerator[Chunk, None], include_usage: bool
) -> AsyncIterator[bytes]:
    frame = {
        "id": f"chatcmpl-{exchange.id}",
        "object": "chat.completion.chunk",
        "created": exchange.created_s,
        "model": model,
    }
    no_usage: dict[str, Any] = {"usage": None} if include_usage else {}

    def event(delta: dict[str, str], finish_reason: FinishReason | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event_bytes(frame | {"choices": [choice]} | no_usage)

    num_tokens = 0
    yield event({"role": "assistant", "content": ""})
    async for chunk in _chain(first, rest):
        num_tokens += chunk.num_tokens
        if chunk.text:
            yield event({"content": chunk.text})
        if chunk.finish_reason is not None:
            yield event({}, chunk.finish_reason)
            if include_usage:
                usage = usage_json(chunk.num_prompt_tokens, num_tokens)
                yield event_bytes(frame | {"choices": [], "usage": usage})
    yield DONE_EVENT


async def _chain(first: Chunk, rest: AsyncGenerator[Chunk, None]) -> AsyncIterator[Chunk]:
    yield first
    async for chunk in rest:
        yield chunk

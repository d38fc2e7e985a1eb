"""Asking the service, as any client does: its models, what a model understands, streamed captions and chats.

Knows nothing of pages. What the service refuses is `Refused`, with the service's own sentence.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from serve_app.client.api import ApiClient, Delta
from serve_app.client.errors import BrokenOff, ServiceError

Visitor = str | None  # the Authorization header that a visitor's requests bring


class Refused(Exception):
    """What was asked has no answer; the message says why, for the visitor."""


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    tasks: tuple[str, ...]
    state: str


@dataclass(frozen=True, slots=True)
class Speed:
    """`first_token_s` after the question; tokens a second between the first and the last, where there are several."""

    num_tokens: int
    first_token_s: float
    tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as far as it has come. `prompt` (of a caption), `finish_reason` and `speed` are known at its end."""

    text: str
    prompt: str | None = None
    finish_reason: str | None = None
    speed: Speed | None = None


@dataclass(frozen=True, slots=True)
class WholeCaption:
    """A caption that came at once. `guard` is the guard's report, where it was to look at the caption."""

    text: str
    prompt: str
    is_cut: bool
    guard: dict[str, Any] | None


class Service:
    """The service at `url`. All of its methods raise `Refused`."""

    def __init__(self, url: str) -> None:
        self._client = ApiClient(url, may_use_proxy=False)

    async def close(self) -> None:
        await self._client.close()

    async def models(self, visitor: Visitor) -> list[Model]:
        """Those that the visitor may use. One whose tasks aren't known yet has none."""
        with self._refusals():
            answer = await self._client.get("/v1/models", authorization=visitor)
        return [Model(entry["id"], tuple(entry["tasks"] or ()), entry["state"]) for entry in answer["data"]]

    async def styles(self, model: str | None, visitor: Visitor) -> dict[str, Any]:
        """`GET /v1/captions/styles` of `model`, or of the default caption model."""
        with self._refusals():
            return await self._client.get("/v1/captions/styles", {"model": model} if model else None, visitor)

    def caption(self, image: bytes | str, fields: dict[str, Any], visitor: Visitor) -> AsyncGenerator[Answer]:
        """The caption of an image, bytes or an address that the service fetches, as it comes and then whole."""
        return self._answer(self._client.stream_caption(fields, image, visitor))

    async def whole_caption(self, image: bytes, fields: dict[str, Any], visitor: Visitor) -> WholeCaption:
        """An image's caption, once it is whole; only so can the guard ask again after a bad one."""
        with self._refusals():
            answer = await self._client.caption(fields, image, authorization=visitor)
        try:
            (item,) = answer["data"]
            text = item["caption"].encode("utf-8", "replace").decode()
            return WholeCaption(text, item["prompt"], item["finish_reason"] == "length", item.get("guard"))
        except (KeyError, ValueError, TypeError, AttributeError) as exc:
            raise Refused("the service's answer holds no caption: try again") from exc

    def chat(
        self, messages: list[dict[str, Any]], fields: dict[str, Any], visitor: Visitor
    ) -> AsyncGenerator[Answer]:
        """The answer to OpenAI's `messages` as it comes and then whole."""
        body = fields | {"messages": messages, "stream_options": {"include_usage": True}}
        return self._answer(self._client.stream_chat(body, visitor))

    async def _answer(self, deltas: AsyncGenerator[Delta]) -> AsyncGenerator[Answer]:
        begun_s, first_s, last_s, text, is_whole = time.monotonic(), None, 0.0, "", False
        with self._refusals():
            async with aclosing(deltas):
                async for delta in deltas:
                    if delta.is_end:
                        speed, is_whole = None, delta.finish_reason is not None
                        if first_s is not None and delta.num_tokens is not None:
                            speed = _speed(delta.num_tokens, first_s - begun_s, last_s - first_s)
                        yield Answer(delta.caption or text, delta.prompt, delta.finish_reason, speed)
                    else:
                        last_s = time.monotonic()
                        first_s = first_s or last_s
                        text += delta.text
                        yield Answer(text)
        if not is_whole:
            raise Refused("the answer broke off before its end: try again")

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except ServiceError as error:
            raise Refused(self._sentence(error)) from error

    def _sentence(self, error: ServiceError) -> str:
        """What a visitor can do about it: the client's own sentences are for the command line."""
        if error.api_message:
            return error.api_message
        if error.status:
            return f"the service answered {error.status} {httpx.codes.get_reason_phrase(error.status)}: try again"
        if isinstance(error, BrokenOff):
            return "the answer broke off before its end: try again"
        return f"the service doesn't answer at {self._client.url}: try again, or tell whoever runs it"


def _speed(num_tokens: int, first_token_s: float, rest_s: float) -> Speed:
    tokens_per_s = (num_tokens - 1) / rest_s if num_tokens > 1 and rest_s > 0 else None
    return Speed(num_tokens, first_token_s, tokens_per_s)


async def side_by_side(answers: Sequence[AsyncGenerator[Answer]]) -> AsyncGenerator[tuple[int, Answer | Refused]]:
    """What comes of several answers at once, each with its place in the list; one's failure ends no other."""
    arrived: asyncio.Queue[tuple[int, Answer | Refused | None]] = asyncio.Queue()

    async def follow(index: int, answer: AsyncGenerator[Answer]) -> None:
        try:
            async with aclosing(answer):
                async for partial in answer:
                    arrived.put_nowait((index, partial))
        except Refused as refused:
            arrived.put_nowait((index, refused))
        finally:
            arrived.put_nowait((index, None))

    tasks = [asyncio.create_task(follow(index, answer)) for index, answer in enumerate(answers)]
    try:
        num_open = len(tasks)
        while num_open:
            index, result = await arrived.get()
            if result is None:
                num_open -= 1
            else:
                yield index, result
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

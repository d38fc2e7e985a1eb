"""Asking the service, as any client does: its models, what a model understands, streamed captions and chats.

Knows HTTP and nothing of pages. What the service refuses is `Refused`, with the service's own sentence.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from serve_app.client.sse import EventReader

# a little above the service's own request_timeout_s (300), so that its 504 arrives before we hang up
_TIMEOUT = httpx.Timeout(30.0, connect=10.0, read=330.0, pool=None)
_NO_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=32)
_DONE = "[DONE]"

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
class Said:
    """An answer as far as it has come. `prompt` (of a caption), `finish_reason` and `speed` are known at its end."""

    text: str
    prompt: str | None = None
    finish_reason: str | None = None
    speed: Speed | None = None


@dataclass(slots=True)
class _Stopwatch:
    begun_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None
    last_s: float = 0.0

    def token_came(self) -> None:
        self.last_s = time.monotonic()
        self.first_s = self.first_s or self.last_s

    def speed(self, num_tokens: int) -> Speed | None:
        if self.first_s is None:
            return None
        elapsed_s = self.last_s - self.first_s
        per_s = (num_tokens - 1) / elapsed_s if num_tokens > 1 and elapsed_s > 0 else None
        return Speed(num_tokens, self.first_s - self.begun_s, per_s)


class Service:
    """The service at `url`. All of its methods raise `Refused`."""

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(base_url=url, timeout=_TIMEOUT, limits=_NO_LIMITS, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def models(self, visitor: Visitor) -> list[Model]:
        """Those that the visitor may use. One that hasn't told its tasks yet has none."""
        listed = await self._get("/v1/models", visitor)
        return [Model(one["id"], tuple(one["tasks"] or ()), one["state"]) for one in listed["data"]]

    async def styles(self, model: str | None, visitor: Visitor) -> dict[str, Any]:
        """`GET /v1/captions/styles`: of the default caption model where none is named."""
        return await self._get("/v1/captions/styles", visitor, {"model": model} if model else None)

    async def caption(self, image: bytes | str, fields: dict[str, Any], visitor: Visitor) -> AsyncGenerator[Said]:
        """The caption of an image, bytes or an address that the service fetches, as it comes and then whole."""
        if isinstance(image, bytes):
            form = {name: _as_form(value) for name, value in (fields | {"stream": True}).items()}
            request: dict[str, Any] = {"data": form, "files": {"image": ("image", image)}}
        else:
            request = {"json": fields | {"stream": True, "image": {"url": image}}}
        watch, text, is_whole = _Stopwatch(), "", False
        async with self._events("/v1/captions", visitor, request) as events:
            async for event in events:
                if event["object"] == "caption.chunk":
                    watch.token_came()
                    text += event["delta"]
                    yield Said(text)
                elif event["object"] == "caption":
                    is_whole = True
                    speed = watch.speed(event["usage"]["completion_tokens"])
                    yield Said(event["caption"], event["prompt"], event["finish_reason"], speed)
        _require(is_whole)

    async def chat(
        self, messages: list[dict[str, Any]], fields: dict[str, Any], visitor: Visitor
    ) -> AsyncGenerator[Said]:
        """The answer to OpenAI's `messages` as it comes and then whole."""
        body = fields | {"messages": messages, "stream": True, "stream_options": {"include_usage": True}}
        watch, text, finish_reason, usage = _Stopwatch(), "", None, None
        async with self._events("/v1/chat/completions", visitor, {"json": body}) as events:
            async for event in events:
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    finish_reason = choice["finish_reason"] or finish_reason
                    if piece := choice["delta"].get("content"):
                        watch.token_came()
                        text += piece
                        yield Said(text)
        _require(finish_reason is not None)
        yield Said(text, None, finish_reason, watch.speed(usage["completion_tokens"]) if usage else None)

    async def _get(self, path: str, visitor: Visitor, query: dict[str, str] | None = None) -> dict[str, Any]:
        try:
            response = await self._client.get(path, params=query, headers=_headers(visitor))
        except httpx.TransportError as exc:
            raise _unreachable(self._client.base_url) from exc
        if not response.is_success:
            raise _refused(response)
        answer: dict[str, Any] = response.json()
        return answer

    @asynccontextmanager
    async def _events(
        self, path: str, visitor: Visitor, request: dict[str, Any]
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The answer's events. Leaving the block early hangs up, which ends the engine's work."""
        try:
            async with self._client.stream("POST", path, headers=_headers(visitor), **request) as response:
                if not response.is_success:
                    await response.aread()
                    raise _refused(response)
                yield _parsed(response)
        except httpx.TransportError as exc:
            raise _unreachable(self._client.base_url) from exc


async def _parsed(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """Each event's JSON until the stream's end. Raises `Refused` for an event that is an error."""
    reader = EventReader()
    async for piece in response.aiter_bytes():
        for data in reader.feed(piece):
            if data == _DONE:
                return
            event: dict[str, Any] = json.loads(data)
            if "error" in event:
                raise Refused(event["error"]["message"])
            yield event


def _headers(visitor: Visitor) -> dict[str, str]:
    return {"authorization": visitor} if visitor else {}


def _as_form(value: Any) -> Any:
    """A multipart form's spelling of a JSON value; lists stay lists, which are fields that come several times."""
    return value if isinstance(value, str | list) else json.dumps(value)


def _refused(response: httpx.Response) -> Refused:
    try:
        return Refused(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return Refused(f"the service answered {response.status_code} {response.reason_phrase}: try again")


def _unreachable(url: httpx.URL) -> Refused:
    return Refused(f"the service doesn't answer at {url}: try again, or tell whoever runs it")


def _require(has_end: bool) -> None:
    if not has_end:
        raise Refused("the answer broke off before its end: try again")


async def side_by_side(answers: Sequence[AsyncGenerator[Said]]) -> AsyncGenerator[tuple[int, Said | Refused]]:
    """What comes of several answers at once, each with its place in the list; one's failure ends no other."""
    arrived: asyncio.Queue[tuple[int, Said | Refused | None]] = asyncio.Queue()

    async def follow(index: int, answer: AsyncGenerator[Said]) -> None:
        try:
            async with aclosing(answer):
                async for said in answer:
                    arrived.put_nowait((index, said))
        except Refused as refused:
            arrived.put_nowait((index, refused))
        finally:
            arrived.put_nowait((index, None))

    tasks = [asyncio.create_task(follow(index, answer)) for index, answer in enumerate(answers)]
    try:
        num_open = len(tasks)
        while num_open:
            index, said = await arrived.get()
            if said is None:
                num_open -= 1
            else:
                yield index, said
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

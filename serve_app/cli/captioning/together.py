"""Sends small images together: several in one request where the same is asked of them.

A request costs more than a small image's share of it: in the command, in proxies, in the service. Images that come
within a moment wait for each other. What fails in company, and may succeed, is asked again alone.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from serve_app.client.api import ApiClient
from serve_app.client.errors import BrokenOff, ServiceError, Unreachable

MOST_TOGETHER: Final = 16  # a service's own default for one request
WAIT_S: Final = 0.01  # for company; a caption takes many times that
_LARGE_BYTES: Final = 1_000_000  # of an image whose own cost is all that counts
_MOST_BYTES: Final = 4_000_000  # in one request

_REGAINED_ALONE: Final = 1 / 32  # of one more image together, for each that succeeds alone
_TOO_MUCH: Final = ("too_many_images", "body_too_large")
_IMAGES_OWN: Final = "invalid_request_error"  # the type of every error for which asking again changes nothing

Answer = dict[str, Any]


@dataclass(slots=True)
class _Group:
    """Images that wait, and the future of each one's answer: None where it is to be asked alone."""

    fields: dict[str, Any]
    images: list[tuple[bytes, str]] = field(default_factory=list)
    answers: list[asyncio.Future[Answer | None]] = field(default_factory=list)
    num_bytes: int = 0
    request: asyncio.Task[None] | None = None
    timer: asyncio.TimerHandle | None = None


class Together:
    """Asks for captions on one event loop, up to `most` in a request.

    The model is named from the first answer on, also where the command leaves it to the service: so a run has one
    model, and a proxy can tell where a request is to go.
    """

    def __init__(self, client: ApiClient, most: int = MOST_TOGETHER) -> None:
        self._client = client
        self._most = most
        self._now: float = most  # fewer after a refusal
        self._model: str | None = None
        self._formats: list[str] | None = None
        self._open: dict[str, _Group] = {}
        self._asking: set[asyncio.Task[None]] = set()

    async def caption(self, fields: dict[str, Any], image: bytes | str, media_type: str) -> Answer:
        """The answer for this image, as `ApiClient.caption` gives and raises."""
        if isinstance(image, bytes) and len(image) <= _LARGE_BYTES and self._now >= 2:
            shared = await self._in_company(fields, image, media_type)
            if shared is not None:
                return shared
        named = self._named(fields)
        try:
            answer = await self._client.caption(named, image, media_type)
        except ServiceError as exc:
            if exc.code != "model_not_found" or "model" in fields or "model" not in named:
                raise
            self._model = None  # the service has another first one now
            answer = await self._client.caption(fields, image, media_type)
        self._now = min(self._most, self._now + _REGAINED_ALONE)  # a busy moment may be over
        self._learn(answer)
        return answer

    async def close(self) -> None:
        """End the requests that nobody waits for any more, and begin none."""
        for group in self._open.values():
            if group.timer:
                group.timer.cancel()
        self._open.clear()
        requests = list(self._asking)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)

    async def image_formats(self, model: str | None) -> Sequence[str]:
        """The names of the formats that the service says it takes. Raises as `ApiClient.get`."""
        if self._formats is None:
            query = {"model": model} if model else None
            answer = await self._client.get("/v1/captions/styles", query)
            self._formats = [str(name) for name in answer.get("image_formats") or ()]
        return self._formats

    async def chat(self, body: dict[str, Any]) -> Answer:
        """The answer of a second model, as `ApiClient.chat` gives and raises."""
        return await self._client.chat(body)

    async def _in_company(self, fields: dict[str, Any], image: bytes, media_type: str) -> Answer | None:
        key = repr(fields)
        group = self._open.get(key)
        if group is None:
            group = self._open[key] = _Group(fields)
            group.timer = asyncio.get_running_loop().call_later(WAIT_S, self._close, key)
        own: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        group.images.append((image, media_type))
        group.answers.append(own)
        group.num_bytes += len(image)
        if len(group.images) >= self._now or group.num_bytes >= _MOST_BYTES:
            self._close(key)
        try:
            return await own
        except asyncio.CancelledError:
            if group.request and all(answer.done() for answer in group.answers):
                group.request.cancel()  # nobody waits for it any more
            raise

    def _close(self, key: str) -> None:
        group = self._open.pop(key)
        if group.timer:
            group.timer.cancel()
        if len(group.images) == 1 or all(answer.done() for answer in group.answers):  # they left
            _settle(group, lambda index: None)
            return
        group.request = asyncio.create_task(self._ask(group))
        self._asking.add(group.request)
        group.request.add_done_callback(self._asking.discard)

    async def _ask(self, group: _Group) -> None:
        try:
            answer = await self._client.captions(self._named(group.fields), group.images)
            items = answer["data"]
            if len(items) != len(group.images):
                raise BrokenOff("the service's answer has another number of captions")
        except (Unreachable, ServiceError) as exc:
            self._refused(group, exc)
        except (KeyError, TypeError):
            _settle(group, lambda index: None)
        else:
            self._now = min(self._most, self._now + 1)
            self._learn(answer)
            _settle(group, lambda index: {**answer, "data": [items[index]]} if _is_final(items[index]) else None)
        finally:
            _settle(group, lambda index: None)  # so that nobody waits forever, whatever was raised

    def _refused(self, group: _Group, exc: ServiceError) -> None:
        """Fewer together next time: a key's limit, or the room in a queue, may be less than so many images."""
        self._now = max(1, self._now // 2)
        for answer in group.answers:
            if not answer.done() and not _is_of_company(exc):
                answer.set_exception(exc)
        _settle(group, lambda index: None)

    def _named(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {"model": self._model, **fields} if self._model else fields

    def _learn(self, answer: Answer) -> None:
        model = answer.get("model")
        if self._model is None and isinstance(model, str):
            self._model = model


def _is_of_company(exc: ServiceError) -> bool:
    """Whether an image alone may fare better: there were too many, or one of them may have broken it."""
    if isinstance(exc, Unreachable) or exc.status in (429, 503):
        return False
    is_broken = isinstance(exc, BrokenOff) or (exc.status or 500) >= 500
    return is_broken or exc.code in _TOO_MUCH or (exc.param or "").startswith("image")


def _is_final(item: dict[str, Any]) -> bool:
    """Whether asking again would change nothing: a caption, or an error that is the image's own."""
    return "error" not in item or item["error"].get("type") == _IMAGES_OWN


def _settle(group: _Group, answer_of: Callable[[int], Answer | None]) -> None:
    for index, answer in enumerate(group.answers):
        if not answer.done():
            answer.set_result(answer_of(index))

"""One HTTP exchange, from the first byte read to the last byte written.

A handler runs inside the exchange: it reads the body, and sends an answer or a stream of server-sent events
before it returns, so that whatever it opened is closed at a known place. The client's leaving cancels it, and so
does whoever calls the request off.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from serve_app.access.keys import Key
from serve_app.config.http import HttpConfig
from serve_app.errors import BodyTooSlow, DeadlineExceeded, InvalidRequest, RequestCancelled, ServeAppError
from serve_app.exchange import request_id
from serve_app.exchange.body_stream import BodyStream
from serve_app.exchange.dialect import SERVICE, Dialect
from serve_app.exchange.lane import Lane
from serve_app.exchange.outbox import Outbox
from serve_app.exchange.tolerant import IgnoredFields
from serve_app.messages import Write
from serve_app.metrics.registry import RequestTracker
from serve_app.metrics.specs import OK

logger = logging.getLogger("serve_app")

Handler = Callable[["Exchange", Lane], Awaitable[None]]
T = TypeVar("T")

PAGE_HEADERS = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
]
JSON_HEADERS = [(b"content-type", b"application/json")]
EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


class Exchange:
    """What a handler sees of one request and its answer.

    `id` is the one in `X-Request-Id`: the client's own where it sent a plain one. `key` is None where the service
    is open to all. `timeout_s` counts from the arrival. The client is told of `ignored_fields`.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        config: HttpConfig,
        tracker: RequestTracker,
        dialect: Dialect = SERVICE,
    ) -> None:
        # Ray Serve gives one to a request that has none, and repeats it in the answer.
        sent = next((value for name, value in scope["headers"] if name == request_id.HEADER), None)
        self._has_sent_id = sent is not None and request_id.is_usable(sent)
        self.id = sent.decode() if sent is not None and self._has_sent_id else request_id.new_id()
        self.key: Key | None = None
        self.timeout_s = config.request_timeout_s
        self.limit_headers: Mapping[str, str] = {}
        self.ignored_fields = IgnoredFields()
        self.created_s = int(time.time())
        self.model = ""
        self.num_tokens = 0
        self.outcome = OK
        self._tracker = tracker
        self._body = BodyStream(Headers(scope=scope), receive, config.max_body_bytes)
        self.request = Request(scope, self._body.receive)
        self._receive, self._send = receive, send
        self._config = config
        self._dialect = dialect
        self._begun_s = time.monotonic()
        self._status: int | None = None
        self._is_stream = self._is_answered = False
        self._watcher: asyncio.Task[None] | None = None
        self._task = asyncio.current_task()
        self._num_own_cancels = 0
        self._client_left = False
        self._cancellation: RequestCancelled | None = None

    @property
    def remaining_s(self) -> float:
        """Seconds left for this request; at least a moment, so that the engine says 504 itself."""
        return max(0.001, self.timeout_s - (time.monotonic() - self._begun_s))

    @property
    def is_late(self) -> bool:
        return time.monotonic() - self._begun_s >= self.timeout_s

    async def in_time(self, work: Awaitable[T]) -> T:
        """What `work` returns. Raises `DeadlineExceeded` where that takes all the time that the request has."""
        try:
            async with asyncio.timeout(self.remaining_s) as limit:
                return await work
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise DeadlineExceeded(
                f"its images weren't there within {self.timeout_s:g} s: use a faster server, or allow more time"
            ) from exc

    @property
    def num_body_bytes(self) -> int:
        """How many have been read of the body."""
        return self._body.num_bytes

    def cancel(self) -> None:
        """Stop the work, and tell the client so. Without effect once it is answered."""
        if not (self._is_answered or self._client_left or self._cancellation):
            self._cancellation = RequestCancelled("the request was called off with DELETE /v1/requests")
            self._end_work()

    def count_tokens(self, num_tokens: int) -> None:
        """Tokens of an answer, for the log line; of one that wasn't streamed, the first token is here too."""
        self._tracker.first_token()
        self.num_tokens += num_tokens

    def set_model(self, model: str) -> None:
        """The model that answers, once it is chosen: the metrics' label and the log line's field."""
        self.model = model
        self._tracker.set_model(model)

    async def read_body(self) -> bytes:
        """The whole body, decoded. Raises `BodyTooLarge`, `BodyTooSlow`, and what its encoding does."""
        async with self._body_in_time():
            body = await self.request.body()
        self._watch_for_leaving()
        return body

    async def read_form(self, max_files: int) -> FormData:
        """The multipart form; closed by the caller. Raises `InvalidRequest`, `BodyTooLarge` or `BodyTooSlow`."""
        try:
            async with self._body_in_time():
                form = await self.request.form(max_files=max_files, max_fields=100)
        except HTTPException as exc:  # Starlette's translation of MultiPartException inside an app
            raise InvalidRequest(f"the multipart form can't be read: {exc.detail}") from exc
        except FormParserError as exc:
            raise InvalidRequest(f"the multipart form can't be read: {exc}") from exc
        self._watch_for_leaving()
        return form

    async def send_json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Answer with one JSON document."""
        data = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        extra = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
        await self._send_whole(status, JSON_HEADERS + extra, data)

    async def send_page(self, html: str) -> None:
        """Answer with a page that may load nothing and run nothing."""
        await self._send_whole(200, PAGE_HEADERS, html.encode())

    async def _send_whole(self, status: int, headers: list[tuple[bytes, bytes]], data: bytes) -> None:
        await self._start(status, [*headers, (b"content-length", b"%d" % len(data))])
        await self._finish(data)

    async def send_events(self, produce: Callable[[Write], Awaitable[None]]) -> None:
        """Answer with server-sent events: what `produce` writes until it returns, each write whole events.

        Headers go out with the first event, so that a failure before it still has a status of its own. What is
        written while the client is behind is sent as one. Where nothing comes for `keep_alive_s`, as from a model
        that is only just started, a comment keeps whoever stands between from hanging up.
        """
        outbox = Outbox(self._config.max_unsent_bytes)
        producer = asyncio.ensure_future(produce(outbox.write))
        outbox.write_when_silent(KEEP_ALIVE, self._config.keep_alive_s)

        def ended(task: "asyncio.Future[None]") -> None:
            outbox.end()
            if not task.cancelled():
                task.exception()  # seen: a client that leaves meanwhile leaves nobody to raise it to

        producer.add_done_callback(ended)
        try:
            is_last = False
            while not is_last:
                events, is_last = await outbox.read()
                if events and events != KEEP_ALIVE:
                    self._tracker.first_token()
                if self._status is None and events:
                    self._is_stream = True
                    await self._start(200, EVENT_HEADERS)
                if is_last and producer.exception() is None:
                    await self._finish(events)
                elif events:
                    await self._send({"type": "http.response.body", "body": events, "more_body": True})
                    if self._config.write_interval_s:
                        await outbox.pause(self._config.write_interval_s)
            await producer
        finally:
            await _end(producer)

    async def fail(self, error: ServeAppError, headers: Mapping[str, str]) -> None:
        """Tell the client: a status and JSON, or an error event where the stream has begun."""
        with suppress(OSError):  # the client may be gone already
            if self._status is None:
                await self.send_json(self._dialect.error_json(error), self._dialect.status(error), headers)
            elif self._is_stream:
                await self._finish(event_bytes(self._dialect.error_json(error), self._dialect.event_start))

    @property
    def cancellation(self) -> RequestCancelled | None:
        """How to tell the client that it called the request off, where that is what ended the work."""
        return self._cancellation

    @property
    def is_given_up(self) -> bool:
        """Whether others told our task to end: Ray Serve does, which sees clients leave too, before us or after."""
        assert self._task is not None, "an exchange runs in a task"
        return self._task.cancelling() > self._num_own_cancels

    @property
    def has_client(self) -> bool:
        """Whether anybody may still read what we send."""
        return not (self._client_left or self.is_given_up)

    def _end_work(self) -> None:
        assert self._task is not None, "an exchange runs in a task"
        self._num_own_cancels += 1
        self._task.cancel()

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    def log(self) -> None:
        """One line a request; never a header, a prompt or an image."""
        seconds = time.monotonic() - self._begun_s
        logger.info(
            "request id=%s model=%s status=%s outcome=%s seconds=%.3f tokens=%d",
            self.id, self.model or "-", self._status or "-", self.outcome, seconds, self.num_tokens,
        )  # fmt: skip

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status
        headers = [*headers, *((name.encode(), value.encode()) for name, value in self.limit_headers.items())]
        if self.ignored_fields:
            self._tracker.ignored_fields(len(self.ignored_fields))
            headers = [*headers, (b"x-ignored-fields", self.ignored_fields.header.encode())]
        if not self._has_sent_id:  # else Ray Serve repeats it, and one more would make two
            headers = [*headers, (request_id.HEADER, self.id.encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _finish(self, data: bytes) -> None:
        self._is_answered = True  # leaving from here on is no leaving: servers say it of every answered client
        await self._send({"type": "http.response.body", "body": data})

    @asynccontextmanager
    async def _body_in_time(self) -> AsyncIterator[None]:
        seconds, left_s = self._config.body_timeout_s, self.remaining_s
        try:
            async with asyncio.timeout(min(seconds, left_s)) as limit:
                yield
        except TimeoutError as exc:
            if not limit.expired():
                raise
            if left_s < seconds:
                raise DeadlineExceeded(
                    f"the body wasn't there within the {self.timeout_s:g} s of this request"
                ) from exc
            raise BodyTooSlow(f"the body wasn't there within {seconds:g} s: send it at once") from exc

    def _watch_for_leaving(self) -> None:
        if self._watcher is not None:  # the body was read before
            return

        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            if not (self._is_answered or self._cancellation):
                self._client_left = True
                self._end_work()

        self._watcher = asyncio.create_task(watch())


async def _end(producer: "asyncio.Future[None]") -> None:
    """Cancel what still runs, and wait until it has stopped its engine's work."""
    if not producer.done():
        producer.cancel()
        await asyncio.wait([producer])


def event_bytes(value: Any, start: bytes = b"data: ") -> bytes:
    """One server-sent event that carries a JSON document."""
    return start + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


DONE_EVENT = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment, which clients skip

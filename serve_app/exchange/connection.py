"""One HTTP request and its answer, from the first byte read to the last byte written.

Knows headers, bodies, events and whether the client is still there, but no model. When the client leaves, or calls
the request off, the task that serves it is cancelled.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from serve_app.config.http import HttpConfig
from serve_app.errors import BodyTooSlow, DeadlineExceeded, InvalidRequest, RequestCancelled, ServeAppError
from serve_app.exchange import request_id
from serve_app.exchange.body_stream import BodyStream
from serve_app.exchange.dialect import Dialect
from serve_app.exchange.outbox import Outbox
from serve_app.exchange.unknown_fields import IgnoredFields
from serve_app.messages import Write
from serve_app.metrics.registry import RequestTracker

JSON_HEADERS = [(b"content-type", b"application/json")]
TEXT_HEADERS = [(b"content-type", b"text/plain; charset=utf-8")]
PAGE_HEADERS = [
    (b"content-type", b"text/html; charset=utf-8"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),
]
EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]
DONE_EVENT = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment, which clients skip


class Connection:
    """A request's bytes, and the one answer that it gets.

    `id` is the one in `X-Request-Id`: the client's own where it sent a usable one. `timeout_s` counts from the
    arrival. `limit_headers` and the names of `ignored_fields` go into the answer's headers.
    """

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        config: HttpConfig,
        tracker: RequestTracker,
        dialect: Dialect,
    ) -> None:
        # Ray Serve gives an id to a request that has none, and repeats it in the answer.
        client_id = next((value for name, value in scope["headers"] if name == request_id.HEADER), b"")
        self._has_client_id = request_id.is_usable(client_id)
        self.id = client_id.decode() if self._has_client_id else request_id.new_id()
        self.timeout_s = config.request_timeout_s
        self.limit_headers: Mapping[str, str] = {}
        self.ignored_fields = IgnoredFields()
        self.created_s = int(time.time())
        self.status: int | None = None
        self._begun_s = time.monotonic()
        self._body = BodyStream(Headers(scope=scope), receive, config.max_body_bytes)
        self.request = Request(scope, self._body.receive)
        self._receive, self._send = receive, send
        self._config = config
        self._tracker = tracker
        self._dialect = dialect
        self._is_stream = self._is_answered = False
        self._watcher: asyncio.Task[None] | None = None
        self._task = asyncio.current_task()
        self._num_own_cancels = 0
        self._client_left = False
        self.cancellation: RequestCancelled | None = None  # set once somebody called the request off

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._begun_s

    @property
    def remaining_s(self) -> float:
        """Seconds left for this request; at least a moment, so that the engine itself raises the 504."""
        return max(0.001, self.timeout_s - self.elapsed_s)

    @property
    def is_late(self) -> bool:
        return self.elapsed_s >= self.timeout_s

    @property
    def num_body_bytes(self) -> int:
        """How many bytes of the body have been read."""
        return self._body.num_bytes

    @property
    def is_given_up(self) -> bool:
        """Whether somebody else cancelled our task. Ray Serve does when a client leaves, before us or after."""
        assert self._task is not None, "a connection is served in a task"
        return self._task.cancelling() > self._num_own_cancels

    @property
    def has_client(self) -> bool:
        """Whether anybody may still read what we send."""
        return not (self._client_left or self.is_given_up)

    def cancel(self) -> None:
        """Stop the work, and tell the client so. Without effect on an answered request."""
        if not (self._is_answered or self._client_left or self.cancellation):
            self.cancellation = RequestCancelled("the request was called off with DELETE /v1/requests")
            self._end_work()

    def close(self) -> None:
        """Stop watching for the client's leaving."""
        if self._watcher is not None:
            self._watcher.cancel()

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
        except (HTTPException, FormParserError) as exc:  # the first is Starlette's for a MultiPartException
            reason = exc.detail if isinstance(exc, HTTPException) else exc
            raise InvalidRequest(f"the multipart form can't be read: {reason}") from exc
        self._watch_for_leaving()
        return form

    async def send_json(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """Answer with one JSON document."""
        data = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        await self._send_whole(status, JSON_HEADERS + _raw(headers or {}), data)

    async def send_text(self, text: str) -> None:
        """Answer with plain text."""
        await self._send_whole(200, TEXT_HEADERS, text.encode())

    async def send_page(self, html: str) -> None:
        """Answer with a page that may load nothing and run nothing."""
        await self._send_whole(200, PAGE_HEADERS, html.encode())

    async def send_events(self, produce: Callable[[Write], Awaitable[None]]) -> None:
        """Answer with server-sent events: what `produce` writes until it returns, each write whole events.

        Headers go out with the first event, so that a failure before it still has a status of its own. Events that
        wait for a slow client are sent as one piece. If nothing is written for `keep_alive_s`, as while a model
        starts, a comment keeps proxies from hanging up.
        """
        outbox = Outbox(self._config.max_unsent_bytes)
        producer = asyncio.ensure_future(produce(outbox.write))
        outbox.write_when_silent(KEEP_ALIVE, self._config.keep_alive_s)

        def ended(task: "asyncio.Future[None]") -> None:
            outbox.end()
            if not task.cancelled():
                task.exception()  # mark it as retrieved: if the client leaves now, nobody else will

        producer.add_done_callback(ended)
        try:
            is_last = False
            while not is_last:
                events, is_last = await outbox.read()
                if events and events != KEEP_ALIVE:
                    self._tracker.first_token()
                if self.status is None and events:
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
            if not producer.done():
                producer.cancel()
                await asyncio.wait([producer])  # until the engine's work has stopped

    async def fail(self, error: ServeAppError, headers: Mapping[str, str]) -> None:
        """Tell the client: a status and JSON, or an error event where the stream has begun."""
        with suppress(OSError):  # the client may be gone already
            if self.status is None:
                await self.send_json(self._dialect.error_json(error), self._dialect.status(error), headers)
            elif self._is_stream:
                await self._finish(event_bytes(self._dialect.error_json(error), self._dialect.event_start))

    async def _send_whole(self, status: int, headers: list[tuple[bytes, bytes]], data: bytes) -> None:
        await self._start(status, [*headers, (b"content-length", b"%d" % len(data))])
        await self._finish(data)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        headers = [*headers, *_raw(self.limit_headers)]
        if self.ignored_fields:
            self._tracker.ignored_fields(len(self.ignored_fields))
            headers.append((b"x-ignored-fields", self.ignored_fields.header.encode()))
        if not self._has_client_id:  # otherwise Ray Serve repeats it, and there would be two
            headers.append((request_id.HEADER, self.id.encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _finish(self, data: bytes) -> None:
        self._is_answered = True  # from here on a disconnect means nothing: servers report one after every answer
        await self._send({"type": "http.response.body", "body": data})

    @asynccontextmanager
    async def _body_in_time(self) -> AsyncIterator[None]:
        body_timeout_s, remaining_s = self._config.body_timeout_s, self.remaining_s
        try:
            async with asyncio.timeout(min(body_timeout_s, remaining_s)) as limit:
                yield
        except TimeoutError as exc:
            if not limit.expired():
                raise
            if remaining_s < body_timeout_s:
                message = f"the body wasn't there within the {self.timeout_s:g} s of this request"
                raise DeadlineExceeded(message) from exc
            raise BodyTooSlow.after(body_timeout_s) from exc

    def _watch_for_leaving(self) -> None:
        if self._watcher is not None:  # the body was read before
            return

        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            if not (self._is_answered or self.cancellation):
                self._client_left = True
                self._end_work()

        self._watcher = asyncio.create_task(watch())

    def _end_work(self) -> None:
        assert self._task is not None, "a connection is served in a task"
        self._num_own_cancels += 1
        self._task.cancel()


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def event_bytes(value: Any, start: bytes = b"data: ") -> bytes:
    """One server-sent event that carries a JSON document."""
    return start + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"

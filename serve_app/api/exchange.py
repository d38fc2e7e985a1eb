"""One HTTP exchange, from the first byte read to the last byte written.

A handler runs inside the exchange: it reads the body, and sends an answer or a stream of server-sent events
before it returns, so that whatever it opened is closed at a known place. The client's leaving cancels it.
Every failure becomes an answer here, or an error event where the answer had begun.
"""

import asyncio
import json
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext, suppress
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message as AsgiMessage
from starlette.types import Receive, Scope, Send

from serve_app.api.lane import Lane
from serve_app.api.outbox import Outbox
from serve_app.config import HttpConfig
from serve_app.errors import BodyTooLarge, InternalError, InvalidRequest, ServeAppError
from serve_app.messages import Write
from serve_app.metrics.registry import RequestTracker
from serve_app.metrics.specs import CLIENT_LEFT, OK

logger = logging.getLogger("serve_app")

Handler = Callable[["Exchange", Lane], Awaitable[None]]

JSON_HEADERS = [(b"content-type", b"application/json")]
EVENT_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


class Endpoint:
    """An ASGI app that runs one handler for one route of a lane. `is_counted`: whether it stands in the metrics."""

    def __init__(self, handler: Handler, lane: Lane, is_counted: bool) -> None:
        self._handler = handler
        self._lane = lane
        self._is_counted = is_counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tracker = self._lane.metrics.request()
        exchange = Exchange(scope, receive, send, self._lane.config, tracker)
        with tracker if self._is_counted else nullcontext():
            exchange.outcome = await self._run(exchange)
            tracker.outcome(exchange.outcome)
        if self._is_counted:
            exchange.log()

    async def _run(self, exchange: "Exchange") -> str:
        """Run the handler; whatever it raises is told to the client. Returns the outcome."""
        try:
            await self._handler(exchange, self._lane)
        except ServeAppError as error:
            await exchange.fail(error)
            return error.code
        except asyncio.CancelledError:
            exchange.absorb_own_cancellation()
            return CLIENT_LEFT
        except (ClientDisconnect, ConnectionError):
            return CLIENT_LEFT
        except Exception:  # the HTTP boundary: a bug is the client's 500 and a traceback in our log
            logger.exception("request %s failed unexpectedly", exchange.id)
            bug = InternalError("the service failed unexpectedly: try again, or report the request's id")
            await exchange.fail(bug)
            return bug.code
        finally:
            exchange.close()
        return OK


class Exchange:
    """What a handler sees of one request and its answer."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, config: HttpConfig, tracker: RequestTracker
    ) -> None:
        self.id = uuid.uuid4().hex
        self.created_s = int(time.time())
        self.model = ""
        self.num_tokens = 0
        self.outcome = OK
        self._tracker = tracker
        self.request = Request(scope, self._receive_bounded)
        self._receive, self._send = receive, send
        self._config = config
        self._num_body_bytes = 0
        self._begun_s = time.monotonic()
        self._status: int | None = None
        self._is_stream = self._is_answered = False
        self._watcher: asyncio.Task[None] | None = None
        self._client_left = False

    def remaining_s(self, timeout_s: float) -> float:
        """Seconds of `timeout_s` left for this request; at least a moment, so that the engine says 504 itself."""
        return max(0.001, timeout_s - (time.monotonic() - self._begun_s))

    def count_tokens(self, num_tokens: int) -> None:
        """Tokens of an answer, for the log line; of one that wasn't streamed, the first token is here too."""
        self._tracker.first_token()
        self.num_tokens += num_tokens

    def set_model(self, model: str) -> None:
        """The model that answers, once it is chosen: the metrics' label and the log line's field."""
        self.model = model
        self._tracker.set_model(model)

    async def read_body(self) -> bytes:
        """The whole body. Raises `BodyTooLarge`."""
        body = await self.request.body()
        self._watch_for_leaving()
        return body

    async def read_form(self, max_files: int) -> FormData:
        """The multipart form; closed by the caller. Raises `InvalidRequest` or `BodyTooLarge`."""
        try:
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
        length = [(b"content-length", b"%d" % len(data))]
        await self._start(status, JSON_HEADERS + length + extra)
        await self._finish(data)

    async def send_events(self, produce: Callable[[Write], Awaitable[None]]) -> None:
        """Answer with server-sent events: what `produce` writes until it returns, each write whole events.

        Headers go out with the first event, so that a failure before it still has a status of its own. What is
        written while the client is behind is sent as one.
        """
        outbox = Outbox(self._config.max_unsent_bytes)
        producer = asyncio.ensure_future(produce(outbox.write))

        def ended(task: "asyncio.Future[None]") -> None:
            outbox.end()
            if not task.cancelled():
                task.exception()  # seen: a client that leaves meanwhile leaves nobody to raise it to

        producer.add_done_callback(ended)
        try:
            is_last = False
            while not is_last:
                events, is_last = await outbox.read()
                if self._status is None and events:
                    self._tracker.first_token()
                    self._is_stream = True
                    await self._start(200, EVENT_HEADERS)
                if is_last and producer.exception() is None:
                    await self._finish(events)
                elif events:
                    await self._send({"type": "http.response.body", "body": events, "more_body": True})
            await producer
        finally:
            await _end(producer)

    async def fail(self, error: ServeAppError) -> None:
        """Tell the client: a status and JSON, or an error event where the stream has begun."""
        with suppress(OSError):  # the client may be gone already
            if self._status is None:
                headers = {}
                if error.retry_after_s is not None:
                    headers["retry-after"] = str(math.ceil(error.retry_after_s))
                await self.send_json(error_json(error), error.status, headers)
            elif self._is_stream:
                await self._finish(event_bytes(error_json(error)))

    def absorb_own_cancellation(self) -> None:
        """Let a cancellation end here if the client's leaving caused it, and pass any other on."""
        task = asyncio.current_task()
        assert task is not None, "an exchange runs in a task"
        if not self._client_left or task.uncancel() > 0:
            raise asyncio.CancelledError

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    def log(self) -> None:
        """One line a request; never a header, a prompt or a picture."""
        seconds = time.monotonic() - self._begun_s
        logger.info(
            "request id=%s model=%s status=%s outcome=%s seconds=%.3f tokens=%d",
            self.id, self.model or "-", self._status or "-", self.outcome, seconds, self.num_tokens,
        )  # fmt: skip

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._status = status
        headers = [*headers, (b"x-request-id", self.id.encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def _finish(self, data: bytes) -> None:
        self._is_answered = True  # leaving from here on is no leaving: servers say it of every answered client
        await self._send({"type": "http.response.body", "body": data})

    async def _receive_bounded(self) -> AsgiMessage:
        declared = self.request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._config.max_body_bytes:
            raise self._too_large(int(declared))
        message = await self._receive()
        self._num_body_bytes += len(message.get("body", b""))
        if self._num_body_bytes > self._config.max_body_bytes:
            raise self._too_large(self._num_body_bytes)
        return message

    def _too_large(self, num_bytes: int) -> BodyTooLarge:
        return BodyTooLarge(
            f"the body has {num_bytes} bytes or more, and this service takes {self._config.max_body_bytes}: "
            "send fewer or smaller pictures"
        )

    def _watch_for_leaving(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "an exchange runs in a task"

        async def watch() -> None:
            while (await self._receive())["type"] != "http.disconnect":
                pass
            if not self._is_answered:
                self._client_left = True
                task.cancel()

        self._watcher = asyncio.create_task(watch())


async def _end(producer: "asyncio.Future[None]") -> None:
    """Cancel what still runs, and wait until it has stopped its engine's work."""
    if not producer.done():
        producer.cancel()
        await asyncio.wait([producer])


def error_json(error: ServeAppError) -> dict[str, Any]:
    """OpenAI's error object."""
    fields = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return {"error": fields}


def event_bytes(value: Any) -> bytes:
    """One server-sent event that carries a JSON document."""
    return (
        b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"
    )


DONE_EVENT = b"data: [DONE]\n\n"

"""Errors in the API's shape for requests whose own process can't answer any more.

Ray Serve's servers, its proxy and those of HAProxy's direct ingress, load `middlewares` by
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH. By themselves they answer nothing for a process that died, which uvicorn
turns into a bare 500, and plain text at their own time-out or bound. Imports little: the proxy runs it.
"""

import json
from collections.abc import Awaitable

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.dialects.tgi.dialect import PATH_ENDS, TGI
from serve_app.errors import DeadlineExceeded, Overloaded, ReplicaDied, ServeAppError
from serve_app.exchange.dialect import SERVICE, Dialect, error_headers
from serve_app.exchange.request_id import HEADER, PlainId

DIED = ReplicaDied("the process that answered this request died: send it again", None, 1.0)
LATE = DeadlineExceeded(
    "not done within the time that Ray Serve allows (http_options.request_timeout_s): ask for less, or send it again"
)
FULL = Overloaded("the service can't take this request now: send it again later", None, 2.0)
_PLAIN = {408: LATE, 429: FULL, 503: FULL}  # what Ray Serve says in plain text
_OF_RAY_SERVE = "/-/"  # its health and its routes


def middlewares() -> list[Middleware]:
    """Ray Serve calls it in each process that serves HTTP."""
    return [Middleware(StandIn), Middleware(PlainId)]  # the last one meets a request first


class StandIn:
    """ASGI middleware: the app behind it always answers, and in the API's shape."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_OF_RAY_SERVE):
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, send)
        await self._app(scope, receive, answer.send)
        if not answer.has_begun:
            await answer.say(DIED)


class _Answer:
    """One answer on its way out, or what stands in for it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._is_replaced = False
        self.has_begun = False

    def send(self, message: Message) -> Awaitable[None]:  # no coroutine of its own: each piece of a stream comes by
        if self._is_replaced:
            return _nothing()
        if not self.has_begun and message["type"] == "http.response.start":
            self.has_begun = True
            if error := _said_plainly(message):
                self._is_replaced = True
                return self.say(error)
        return self._send(message)

    async def say(self, error: ServeAppError) -> None:
        dialect = _dialect(self._scope["path"])
        data = json.dumps(dialect.error_json(error)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
        headers += [(name.encode(), value.encode()) for name, value in error_headers(error).items()]
        headers += [(name, value) for name, value in self._scope["headers"] if name == HEADER]
        await self._send({"type": "http.response.start", "status": dialect.status(error), "headers": headers})
        await self._send({"type": "http.response.body", "body": data})


def _said_plainly(message: Message) -> ServeAppError | None:
    """Our word for what Ray Serve says; all that the service itself says of such a status is JSON."""
    error = _PLAIN.get(message["status"])
    if error is not None and any(
        name.lower() == b"content-type" and value.startswith(b"text/plain") for name, value in message["headers"]
    ):
        return error
    return None


def _dialect(path: str) -> Dialect:
    return TGI if path.rsplit("/", 1)[-1] in PATH_ENDS else SERVICE


async def _nothing() -> None:
    return None

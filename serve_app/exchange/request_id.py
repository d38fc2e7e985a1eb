"""A request has one id everywhere, in header, body, log and `DELETE`: the client's own if it is usable.

Imports little: Ray Serve's proxy runs it.
"""

import re
import uuid

from starlette.types import ASGIApp, Receive, Scope, Send

HEADER = b"x-request-id"
# These need no escaping in a log line, a path or JSON.
_USABLE = re.compile(rb"[A-Za-z0-9._:=+@~-]{1,128}")


def is_usable(sent: bytes) -> bool:
    return _USABLE.fullmatch(sent) is not None


def new_id() -> str:
    return uuid.uuid4().hex


class PlainId:
    """ASGI middleware in front of Ray Serve's own, which repeats any id of a client's in the answer.

    It takes an unusable id, and a second one, out of the request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            sent = [value for name, value in scope["headers"] if name == HEADER]
            if sent and not (len(sent) == 1 and is_usable(sent[0])):
                own = sent[0] if is_usable(sent[0]) else new_id().encode()
                others = [(name, value) for name, value in scope["headers"] if name != HEADER]
                scope = {**scope, "headers": [*others, (HEADER, own)]}
        await self._app(scope, receive, send)

"""Holds every answer of an HTTP app against the lane's own OpenAPI page: status, type, and each field of each answer.

Fields that the page doesn't have are mistakes here, though clients are told to expect them.
"""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx
from httpx_sse import EventSource
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.ingress.openapi import document
from serve_app.ingress.routes import ROUTES

PAGE = document(ROUTES, "")
_PATHS = [(compile_path(route.path)[0], route.shown_path) for route in ROUTES]
_LONGEST_SHOWN = 300


def _closed(schema: Any) -> Any:
    """The same, in which an object has the fields that it names and no other."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in schema.items()}
    return {"additionalProperties": False, **closed} if isinstance(closed.get("properties"), dict) else closed


_COMPONENTS = _closed(PAGE["components"])


@cache
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema) | {"components": _COMPONENTS})


def mistakes(method: str, path: str, status: int, media_type: str, body: bytes) -> Iterator[str]:
    """What the page doesn't say of this answer, as sentences."""
    where = f"{method} {path[:100]}: {status} {media_type}"
    found = next((operations for regex, operations in _PATHS if regex.match(path.rstrip("/") or "/")), None)
    operation = PAGE["paths"][found].get(method.lower()) if found else None
    if operation is None:  # no such route: an error in the shape of the paths beside it
        contents = {"application/json": {"schema": {"anyOf": [{"$ref": f"#/components/schemas/{name}"}
                                                              for name in ("Error", "TgiError")]}}}  # fmt: skip
    else:
        answers = operation["responses"]
        contents = answers.get(str(status), answers.get(f"{status // 100}XX", {})).get("content", {})
    content = contents.get(media_type)
    if content is None:
        yield f"{where}: isn't on the page, which has {sorted(contents)}"
    elif media_type == "application/json":
        yield from _misfits(where, content["schema"], json.loads(body))
    elif media_type == "text/event-stream":
        answer = httpx.Response(status, headers={"content-type": media_type}, content=body)
        for event in EventSource(answer).iter_sse():
            if event.data not in ("", "[DONE]"):
                yield from _misfits(where, content["x-event"], json.loads(event.data))


def _misfits(where: str, schema: dict[str, Any], value: Any) -> Iterator[str]:
    error = best_match(_validator(json.dumps(schema)).iter_errors(value))
    if error is not None:
        yield f"{where}: {error.json_path}: {error.message[:_LONGEST_SHOWN]}"


class PageCheck:
    """ASGI middleware that keeps what is wrong in `found`, for whoever runs the app to look at in the end."""

    def __init__(self, app: ASGIApp, found: list[str]) -> None:
        self._app = app
        self._found = found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("HEAD", "OPTIONS"):
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)
            await send(message)

        try:
            await self._app(scope, receive, keep)
        finally:
            self._look(scope, messages)

    def _look(self, scope: Scope, messages: list[Message]) -> None:
        """A body that was broken off is looked at where it is a stream's: its events are whole."""
        if not messages:
            return
        start, pieces = messages[0], messages[1:]
        media_type = dict(start["headers"]).get(b"content-type", b"").decode().partition(";")[0]
        is_whole = bool(pieces) and not pieces[-1].get("more_body", False)
        if is_whole or media_type == "text/event-stream":
            body = b"".join(piece.get("body", b"") for piece in pieces)
            self._found += mistakes(scope["method"], scope["path"], start["status"], media_type, body)

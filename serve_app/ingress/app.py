"""The HTTP app of a lane: which path is whose. Made anew in each process that serves HTTP."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route

from serve_app.access.keys import Key
from serve_app.dialects.captions.styles import list_caption_styles
from serve_app.dialects.captions.task import create_captions
from serve_app.dialects.openai.chat import create_chat_completion
from serve_app.dialects.openai.completions import create_completion
from serve_app.dialects.openai.models import list_models, retrieve_model
from serve_app.dialects.tgi.routes import TGI_ROUTES
from serve_app.errors import (
    Forbidden,
    InternalError,
    InvalidKey,
    InvalidRequest,
    MethodNotAllowed,
    RouteNotFound,
    ServeAppError,
)
from serve_app.exchange.dialect import OPENAI, TGI, Dialect
from serve_app.exchange.endpoint import Endpoint
from serve_app.exchange.exchange import Exchange, Handler
from serve_app.exchange.lane import Lane
from serve_app.images.own_site import require_own_site
from serve_app.ingress.docs_page import page
from serve_app.ingress.openapi import document
from serve_app.ingress.other_routes import hint
from serve_app.ingress.requests import cancel_request
from serve_app.plain_path import PlainPath


async def health(exchange: Exchange, lane: Lane) -> None:
    """`GET /health`, `GET /ping` (SageMaker's), `GET /` (TGI's): this process answers."""
    await exchange.send_json({"status": "ok"})


async def ready(exchange: Exchange, lane: Lane) -> None:
    """`GET /ready`: 200 when something can serve, and all that once could still can; `all=1`: when all are ready.

    Else 503. Those who run the service are told each model's state.
    """
    catalog, entries = lane.catalog, lane.catalog.entries()
    if _is_asked(exchange, "all"):
        is_ready = bool(entries) and all(entry.is_ready for entry in entries)
    else:
        able = [entry for entry in entries if catalog.can_serve(entry)]
        is_ready = bool(able) and all(entry in able for entry in entries if catalog.has_served(entry))
    is_ready = is_ready and not lane.running.is_closing
    told: dict[str, Any] = {"ready": is_ready}
    key = _key_if_any(exchange, lane)
    if lane.tells_all(key) and (key is not None or _is_of_own_site(exchange, lane)):
        told["models"] = {e.name: {"state": e.state} | ({"reason": e.reason} if e.reason else {}) for e in entries}
        if catalog.refused_config:
            told["refused_config"] = catalog.refused_config
    await exchange.send_json(told, 200 if is_ready else 503)


def _is_asked(exchange: Exchange, name: str) -> bool:
    """A query's flag. Raises `InvalidRequest` where it is neither on nor off."""
    value = exchange.request.query_params.get(name, "0")
    if value not in ("0", "1"):
        raise InvalidRequest(f"{name}: it is 1 or 0", name)
    return value == "1"


def _key_if_any(exchange: Exchange, lane: Lane) -> Key | None:
    """Whose key came with a request that needs none."""
    with suppress(InvalidKey):
        return lane.keys.key_of(exchange.request.headers.get("authorization"))
    return None


def _is_of_own_site(exchange: Exchange, lane: Lane) -> bool:
    try:
        require_own_site(exchange.request.scope["headers"], lane.config.allowed_hosts, lane.config.cors_origins)
    except Forbidden:
        return False
    return True


async def openapi(exchange: Exchange, lane: Lane) -> None:
    """`GET /openapi.json`: all of this, for programs."""
    await exchange.send_json(document(ROUTES, exchange.request.scope.get("root_path", "")))


async def docs(exchange: Exchange, lane: Lane) -> None:
    """`GET /docs`: all of this, for people."""
    await exchange.send_page(page(document(ROUTES, exchange.request.scope.get("root_path", ""))))


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/chat/completions", create_chat_completion),
    ("POST", "/v1/completions", create_completion),
    ("POST", "/v1/captions", create_captions),
    ("GET", "/v1/captions/styles", list_caption_styles),
    ("GET", "/v1/models", list_models),
    ("GET", "/v1/models/{id:path}", retrieve_model),
    ("DELETE", "/v1/requests/{id}", cancel_request),
    ("GET", "/health", health),
    ("GET", "/ready", ready),
    ("GET", "/ping", health),
    ("GET", "/openapi.json", openapi),
    ("GET", "/docs", docs),
    *TGI_ROUTES,
    ("GET", "/", health),
)
TGI_PATHS = frozenset({"/ping", *(path for _, path, _ in TGI_ROUTES)})
_LONGEST_SHOWN_PATH = 200
_OPEN: frozenset[Handler] = frozenset({health, ready, openapi, docs})  # without a key: they tell nothing of anybody's


def create_app(lane: Lane) -> Starlette:
    """The lane's ASGI app. While it is open, other processes' wishes are heeded; at its end the image gate closes."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        heeding = asyncio.create_task(lane.heed_others())
        yield
        heeding.cancel()
        await lane.images.close()

    # An Endpoint is an instance, so that Starlette hands it the raw ASGI call.
    routes = [
        Route(
            path,
            Endpoint(
                handler,
                lane,
                is_counted=method == "POST",
                is_open=handler in _OPEN,
                dialect=_dialect_of(path),
            ),
            methods=[method],
        )
        for method, path, handler in ROUTES
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(PlainPath), *_cors(lane.config.cors_origins)],
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error, Exception: _unexpected_error},
    )


def _cors(origins: Sequence[str]) -> list[Middleware]:
    """What lets scripts of these origins' pages call the service; without it browsers let no page read an answer."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-request-id", "x-request-timeout", "x-model"],
            expose_headers=["x-request-id", "retry-after", "x-ignored-fields"],
        )
    ]


async def _http_error(request: Request, exc: Exception) -> Response:
    """Starlette's own refusals (no such route, wrong method) in our error's shape."""
    assert isinstance(exc, HTTPException), "registered for HTTPException"
    path = _path(request)[:_LONGEST_SHOWN_PATH]
    error: ServeAppError
    headers = dict(exc.headers or {})
    if exc.status_code == 405:
        headers["Allow"] = _allowed(request)
        error = MethodNotAllowed(f"{path} doesn't take {request.method}: use {headers['Allow']}")
    else:
        routes = [route.replace(":path", "") for _, route, _ in ROUTES]
        error = RouteNotFound(f"no route {path}{hint(path, routes)}")
    dialect = _dialect_of(path)
    return JSONResponse(dialect.error_json(error), dialect.status(error), headers=headers)


def _allowed(request: Request) -> str:
    """The methods of all routes of this path; Starlette's own refusal names the first one's."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for route in routes for method in route.methods}))


async def _unexpected_error(request: Request, exc: Exception) -> Response:
    error, dialect = InternalError("the service failed unexpectedly: try again"), _dialect_of(_path(request))
    return JSONResponse(dialect.error_json(error), dialect.status(error))


def _path(request: Request) -> str:
    """Without the prefix that the lane stands under."""
    return request.url.path.removeprefix(request.scope.get("root_path", ""))


def _dialect_of(path: str) -> Dialect:
    return TGI if path in TGI_PATHS else OPENAI

"""The HTTP app of a lane, made of the table of routes. Made anew in each process that serves HTTP."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.routing import Route as StarletteRoute

from serve_app.errors import InternalError, MethodNotAllowed, RouteNotFound, ServeAppError
from serve_app.exchange.dialect import SERVICE, Dialect
from serve_app.exchange.endpoint import Endpoint
from serve_app.exchange.lane import Lane
from serve_app.ingress.other_routes import hint
from serve_app.ingress.routes import LANES, ROUTES
from serve_app.plain_path import PlainPath

_LONGEST_SHOWN_PATH = 200
_DIALECTS = {route.path: route.dialect for route in ROUTES}


def create_app(lane: Lane) -> Starlette:
    """The lane's ASGI app. While it is open, other processes' wishes are heeded; at its end the image gate closes."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        heeding = asyncio.create_task(lane.heed_others())
        yield
        heeding.cancel()
        await lane.images.close()

    # An Endpoint is an instance, so that Starlette hands it the raw ASGI call.
    table = ROUTES if lane.lane_table is None else (*ROUTES, LANES)
    routes = [StarletteRoute(route.path, Endpoint(route, lane), methods=[route.method]) for route in table]
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
        shown = [route.shown_path for route in ROUTES]
        error = RouteNotFound(f"no route {path}{hint(path, shown)}")
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
    return _DIALECTS.get(path, SERVICE)

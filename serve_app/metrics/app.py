"""The sidecar's HTTP side: `/` is Prometheus or OpenMetrics text as `Accept` asks, `/summary` JSON."""

import asyncio
from collections.abc import Sequence

from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.access.keys import Keyring
from serve_app.errors import Forbidden, RequestError, error_json
from serve_app.images.own_site import require_own_site
from serve_app.metrics.sidecar import Sidecar
from serve_app.plain_path import PlainPath


def create_metrics_app(sidecar: Sidecar, keys: Keyring, allowed_hosts: Sequence[str] = ()) -> Starlette:
    """The app over this sidecar. Where there are `keys`, an administrator's is needed."""

    async def metrics(request: Request) -> Response:
        render, content_type = choose_encoder(request.headers.get("accept", ""))
        text = await asyncio.to_thread(render, sidecar.exposition())
        return Response(text, headers={"content-type": content_type})

    async def summary(_: Request) -> Response:
        return JSONResponse(sidecar.summary(), headers={"cache-control": "no-store"})

    routes = [Route("/", metrics), Route("/summary", summary)]
    return Starlette(
        routes=routes,
        middleware=[Middleware(PlainPath), Middleware(_AdminsOnly, keys=keys, allowed_hosts=allowed_hosts)],
    )


class _AdminsOnly:
    """Lets those in who have an administrator's key, and everybody where the service has no keys."""

    def __init__(self, app: ASGIApp, keys: Keyring, allowed_hosts: Sequence[str]) -> None:
        self._app = app
        self._keys = keys
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                key = self._keys.key_of(Headers(scope=scope).get("authorization"))
                if key is None:
                    require_own_site(scope["headers"], self._allowed_hosts, ())
                elif not key.is_admin:
                    raise Forbidden("the numbers are for administrators: use a key that has admin: true")
            except RequestError as error:
                await JSONResponse(error_json(error), error.status)(scope, receive, send)
                return
        await self._app(scope, receive, send)

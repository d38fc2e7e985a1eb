"""A slash at the end of a path says nothing: `/v1/captions/` is `/v1/captions`, and an app's bare prefix its `/`.

Starlette would send the client on with a 307, to an address made of the Host header and of `http`, which is wrong
where something in front has taken `https` away, and which many clients don't follow with a POST.
"""

from starlette.types import ASGIApp, Receive, Scope, Send


class PlainPath:
    """ASGI middleware: the app behind it sees every path without such a slash."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].rstrip("/")
            if path == scope.get("root_path", ""):
                path += "/"
            if path != scope["path"]:
                scope = {**scope, "path": path}
        await self._app(scope, receive, send)

"""Who comes in: the service's API keys, as a browser or Gradio's client sends them, and how much may be uploaded.

Knows nothing of Gradio but the paths of its routes.
"""

import base64
import binascii
import os
import re
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.access.keys import Keyring
from serve_app.errors import Forbidden, RequestError, error_json
from serve_app.images.own_site import require_own_site

# Gradio's routes that the page and Gradio's clients need. Others write files, fetch, or tell of other visitors for
# whoever asks, and a later version may have more of them: what isn't here is closed.
_OPEN = re.compile(
    r"GET /("
    r"|config/?|theme\.css|favicon\.ico|robots\.txt|manifest\.json|pwa_icon(/\d+)?"
    r"|(assets|static|svelte)/.+"
    r"|gradio_api/(info/?|openapi\.json|startup-events|theme\.css|upload_progress|queue/(data|status)|heartbeat/[^/]+)"
    r"|gradio_api/file=.+"
    r"|gradio_api/call/(v2/)?[^/]+/[^/]+"
    r")|POST /gradio_api/(upload|queue/join|cancel|reset/?|call/(v2/)?[^/]+/?)"
)
_UPLOAD = "/gradio_api/upload"
_MAX_CALL_BYTES = 4_000_000  # of what asks for an answer: texts, and the paths of uploads
# What lets a browser ask its user: any name will do, the password is the key.
_CHALLENGE = {"www-authenticate": 'Basic realm="serve_app: any name, your API key as the password", charset="UTF-8"'}


class Door:
    """Lets those in who have a key, everybody where the service has none, and nobody whom another site's page sent.
    Whoever is in reaches the routes that the page needs.

    A key comes as `Bearer` (Gradio's client: `headers={"Authorization": …}`) or as the password of `Basic`
    (browsers). Inside it is always `Bearer`. Uploads end where the files of `folder` have `max_bytes` together. The
    bare prefix leads to the one with a slash, below which the page looks for its parts.
    """

    def __init__(
        self, app: ASGIApp, keys: Keyring, folder: Path, max_bytes: int, allowed_hosts: Sequence[str] = ()
    ) -> None:
        self._app = app
        self._keys = keys
        self._folder = folder
        self._max_bytes = max_bytes
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            answer = self._own_answer(scope)
            if answer is not None:
                await answer(scope, receive, send)
                return
        elif scope["type"] != "lifespan":  # the page needs no websocket, and none would have shown its key
            await send({"type": "websocket.close"})
            return
        await self._app(scope, receive, send)

    def _own_answer(self, scope: Scope) -> Response | None:
        headers = MutableHeaders(scope=scope)
        if (authorization := _as_bearer(headers.get("authorization"))) is not None:
            headers["authorization"] = authorization
        try:
            if self._keys.key_of(authorization) is None:
                require_own_site(scope["headers"], self._allowed_hosts, ())
        except Forbidden as error:
            return JSONResponse(error_json(error), error.status)
        except RequestError as error:
            return JSONResponse(error_json(error), error.status, headers=_CHALLENGE)
        if scope["method"] == "POST" and Headers(scope=scope).get("sec-fetch-site") == "cross-site":
            return JSONResponse({"detail": "another site's page may not ask in its visitor's name"}, 403)
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        if not _OPEN.fullmatch(f"{method} {path or '/'}"):
            return JSONResponse({"detail": "not served here"}, 404)
        if path.startswith(_UPLOAD) and scope["method"] == "POST" and _num_bytes(self._folder) > self._max_bytes:
            return JSONResponse({"detail": "the playground holds too many images for now: try again later"}, 503)
        is_call = scope["method"] == "POST" and not path.startswith(_UPLOAD)
        if is_call and not _is_small(headers.get("content-length", "")):
            return JSONResponse({"detail": f"a call has a Content-Length, and at most {_MAX_CALL_BYTES} bytes"}, 413)
        if scope["path"] == scope.get("root_path", ""):
            # relative, so that it holds behind whatever stands in front
            query = scope["query_string"].decode("latin-1")
            return RedirectResponse(f"{scope['path'].rpartition('/')[2]}/" + (f"?{query}" if query else ""))
        return None


def _is_small(content_length: str) -> bool:
    """Whether the body is known to be; servers end it where it was said to end."""
    return re.fullmatch("[0-9]{1,9}", content_length) is not None and int(content_length) <= _MAX_CALL_BYTES


def _as_bearer(authorization: str | None) -> str | None:
    """The header as the service takes it; one that isn't `Basic` stays as it is."""
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        _, _, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return authorization
    return f"Bearer {password}"


def _num_bytes(folder: Path) -> int:
    """Of all files below; those that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total

"""How an HTTP API says that something went wrong: each route's own status, JSON and error event."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serve_app import __version__
from serve_app.errors import ServeAppError, error_json

FINGERPRINT = f"serve_app-{__version__}"  # OpenAI's `system_fingerprint`: what answers


@dataclass(frozen=True, slots=True)
class Dialect:
    """`event_start` is what stands before the JSON of a server-sent event; clients take either, people compare."""

    status: Callable[[ServeAppError], int]
    error_json: Callable[[ServeAppError], dict[str, Any]]
    event_start: bytes = b"data: "


OPENAI = Dialect(status=lambda error: error.status, error_json=error_json)

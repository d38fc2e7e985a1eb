"""How an HTTP API says that something went wrong: each route's own status, JSON and error event."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serve_app.errors import ServeAppError, error_json


@dataclass(frozen=True, slots=True)
class Dialect:
    """`event_start` is what stands before the JSON of a server-sent event; clients take either, people compare."""

    status: Callable[[ServeAppError], int]
    error_json: Callable[[ServeAppError], dict[str, Any]]
    event_start: bytes = b"data: "


OPENAI = Dialect(status=lambda error: error.status, error_json=error_json)

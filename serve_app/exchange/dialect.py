"""How an HTTP API says that something went wrong: each route's own status, JSON and error event."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serve_app import __version__
from serve_app.errors import (
    EngineFailed,
    InternalError,
    Overloaded,
    RateLimited,
    ReplicaDied,
    ServeAppError,
    error_json,
)

FINGERPRINT = f"serve_app-{__version__}"  # OpenAI's `system_fingerprint`: what answers

_TGI_TYPES: tuple[tuple[tuple[type[ServeAppError], ...], int, str], ...] = (
    ((RateLimited, Overloaded), 429, "overloaded"),
    ((EngineFailed, ReplicaDied), 424, "generation"),
    ((InternalError,), 500, "incomplete_generation"),
)


@dataclass(frozen=True, slots=True)
class Dialect:
    """`event_start` is what stands before the JSON of a server-sent event; clients take either, people compare."""

    status: Callable[[ServeAppError], int]
    error_json: Callable[[ServeAppError], dict[str, Any]]
    event_start: bytes = b"data: "


OPENAI = Dialect(status=lambda error: error.status, error_json=error_json)


def _tgi_status_and_type(error: ServeAppError) -> tuple[int, str]:
    """TGI's, where it has one; else our status, with our code as the type."""
    for errors, status, name in _TGI_TYPES:
        if isinstance(error, errors):
            return status, name
    if error.status in (400, 413):
        return 422 if error.status == 400 else 413, "validation"
    return error.status, error.code


def _tgi_error_json(error: ServeAppError) -> dict[str, Any]:
    return {"error": error.message, "error_type": _tgi_status_and_type(error)[1]}


TGI = Dialect(status=lambda error: _tgi_status_and_type(error)[0], error_json=_tgi_error_json, event_start=b"data:")

"""TGI's way to say that something went wrong. Imports little: Ray Serve's proxies run it."""

from typing import Any

from typing_extensions import TypedDict

from serve_app.errors import EngineFailed, InternalError, Overloaded, RateLimited, ReplicaDied, ServeAppError
from serve_app.exchange.dialect import Dialect

# The last parts of its paths, for a proxy that must answer in this dialect without importing its routes.
PATH_ENDS = frozenset({"generate", "generate_stream", "info", "invocations", "tokenize", "chat_tokenize", "ping"})

_TYPES: tuple[tuple[tuple[type[ServeAppError], ...], int, str], ...] = (
    ((RateLimited, Overloaded), 429, "overloaded"),
    ((EngineFailed, ReplicaDied), 424, "generation"),
    ((InternalError,), 500, "incomplete_generation"),
)


class TgiError(TypedDict):
    error: str
    error_type: str


def _status_and_type(error: ServeAppError) -> tuple[int, str]:
    """TGI's, where it has one; otherwise our status, with our code as the type."""
    for errors, status, name in _TYPES:
        if isinstance(error, errors):
            return status, name
    if error.status in (400, 413):
        return 422 if error.status == 400 else 413, "validation"
    return error.status, error.code


def _error_json(error: ServeAppError) -> dict[str, Any]:
    return {"error": error.message, "error_type": _status_and_type(error)[1]}


TGI = Dialect("TGI", lambda error: _status_and_type(error)[0], _error_json, TgiError, b"data:")

"""How an HTTP API says that something went wrong: its status, its JSON and its error event.

Knows no path: a route names its dialect, and each dialect lives in a folder of its own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import WithJsonSchema
from typing_extensions import TypedDict

from serve_app.errors import (
    DeadlineExceeded,
    InvalidKey,
    ServeAppError,
    UnsupportedMediaType,
    concrete_errors,
    error_json,
)
from serve_app.exchange.body_stream import CODINGS

Code = Annotated[str, WithJsonSchema({"type": "string", "enum": sorted({error.code for error in concrete_errors()})})]


class ErrorFields(TypedDict):
    message: str
    type: str
    param: str | None
    code: Code


class Error(TypedDict):
    error: ErrorFields


def _own_status(error: ServeAppError) -> int:
    return error.status


@dataclass(frozen=True, slots=True)
class Dialect:
    """An API's name and its errors, which are OpenAI's unless it says otherwise.

    `error_type` is the shape of `error_json`'s value. `event_start` precedes the JSON of a server-sent event.
    """

    name: str
    status: Callable[[ServeAppError], int] = _own_status
    error_json: Callable[[ServeAppError], dict[str, Any]] = error_json
    error_type: Any = Error
    event_start: bytes = b"data: "


SERVICE = Dialect("service")  # of routes that no other API has, and of paths that don't exist


def error_headers(error: ServeAppError) -> dict[str, str]:
    """The headers of an answer with this error, in every dialect."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, InvalidKey):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, UnsupportedMediaType):
        headers["accept-encoding"] = CODINGS
    if isinstance(error, DeadlineExceeded):
        headers["x-should-retry"] = "false"  # OpenAI's clients would send it again
    return headers

"""A request whose body is JSON: what its type says, its bytes parsed, its values validated, off the event loop."""

from typing import Any, TypeVar

from serve_app.errors import UnsupportedMediaType
from serve_app.exchange.body import Body, parse_json, validate
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.off_loop import off_loop

B = TypeVar("B", bound=Body)


# What says nothing of the body is taken for JSON, as curl's `-d` and no type at all. What names another type is not.
_JSON_TYPES = frozenset({
    "", "application/json", "text/json", "application/octet-stream", "application/x-www-form-urlencoded",
})  # fmt: skip


async def read_json(exchange: Exchange, body: type[B]) -> B:
    """The validated body. Raises `InvalidRequest`, `UnsupportedMediaType`, and what `Exchange.read_body` raises."""
    data = await exchange.read_body()
    require_json(exchange)
    return await off_loop(len(data), parse_json, data, body, exchange.ignored_fields)


def require_json(exchange: Exchange) -> None:
    """Raise `UnsupportedMediaType` where the request says that its body is something else."""
    declared = exchange.request.headers.get("content-type", "")
    kind = declared.partition(";")[0].partition(",")[0].strip().lower()
    if kind not in _JSON_TYPES and not kind.endswith("+json"):
        raise UnsupportedMediaType(
            f"Content-Type '{kind[:100]}' isn't taken here: send JSON as application/json", "Content-Type"
        )


async def validated(exchange: Exchange, values: dict[str, Any], body: type[B]) -> B:
    """The values of its body as a `body`. Raises `InvalidRequest`."""
    return await off_loop(
        exchange.num_body_bytes, lambda: validate(values, body, strict=True, ignored=exchange.ignored_fields)
    )

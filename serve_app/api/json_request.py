"""A request whose body is JSON: what its type says, its bytes parsed, its values validated, off the event loop."""

from typing import Any, TypeVar

from serve_app.api.body import Body, parse_json, validate
from serve_app.api.exchange import Exchange
from serve_app.api.off_loop import off_loop

B = TypeVar("B", bound=Body)


async def read_json(exchange: Exchange, body: type[B]) -> B:
    """The validated body. Raises `InvalidRequest`, and what `Exchange.read_body` raises."""
    data = await exchange.read_body()
    return await off_loop(len(data), parse_json, data, body, exchange.ignored_fields)


async def validated(exchange: Exchange, values: dict[str, Any], body: type[B]) -> B:
    """The values of its body as a `body`. Raises `InvalidRequest`."""
    return await off_loop(
        exchange.num_body_bytes, lambda: validate(values, body, strict=True, ignored=exchange.ignored_fields)
    )

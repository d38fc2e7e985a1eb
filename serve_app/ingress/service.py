"""Handlers that belong to no API: health, readiness, and the cancelling of requests."""

from contextlib import suppress
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from serve_app.access.keys import Key
from serve_app.errors import Forbidden, InvalidKey, InvalidRequest, RequestNotFound, RouteNotFound
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.lane_secret import LANES_PATH, SECRET_HEADER, is_secret
from serve_app.images.own_site import require_own_site
from serve_app.models.entry import State


class Health(TypedDict):
    status: Literal["ok"]


class ModelState(TypedDict):
    state: State
    reason: NotRequired[str]


class Ready(TypedDict):
    ready: bool
    models: NotRequired[dict[str, ModelState]]
    refused_config: NotRequired[str]


class CancelledRequest(TypedDict):
    id: str
    object: Literal["request"]
    cancelled: bool


async def health(exchange: Exchange) -> None:
    """This process answers."""
    await exchange.send_json({"status": "ok"})


async def ready(exchange: Exchange) -> None:
    """200 when a model can serve, and all that once could still can; with `all=1`, when all are ready.

    Otherwise 503. Those who run the service also get each model's state.
    """
    lane = exchange.lane
    catalog, entries = lane.catalog, lane.catalog.entries()
    if _flag(exchange, "all"):
        is_ready = bool(entries) and all(entry.is_ready for entry in entries)
    else:
        able = [entry for entry in entries if catalog.can_serve(entry)]
        is_ready = bool(able) and all(entry in able for entry in entries if catalog.has_served(entry))
    is_ready = is_ready and not lane.running.is_closing
    answer: dict[str, Any] = {"ready": is_ready}
    key = _key_if_any(exchange)
    if lane.may_see_all(key) and (key is not None or _is_of_own_site(exchange)):
        answer["models"] = {e.name: {"state": e.state} | ({"reason": e.reason} if e.reason else {}) for e in entries}
        if catalog.refused_config:
            answer["refused_config"] = catalog.refused_config
    await exchange.send_json(answer, 200 if is_ready else 503)


async def lanes(exchange: Exchange) -> None:
    """Which names lead to which lane, for HAProxy alone."""
    make_table, shown = exchange.lane.lane_table, exchange.request.headers.get(SECRET_HEADER, "")
    if make_table is None or not is_secret(shown, exchange.lane.secret):
        raise RouteNotFound(f"no route {LANES_PATH}: GET /docs lists those that there are")
    await exchange.send_text(make_table())


async def cancel_request(exchange: Exchange) -> None:
    """Stops the engine's work on a request. Its own client gets `request_cancelled`."""
    request_id = exchange.request.path_params["id"]
    is_found = exchange.lane.running.cancel(request_id, exchange.key)
    if not is_found and not await exchange.lane.cancel_elsewhere(request_id, exchange.key):
        raise RequestNotFound(
            f"no request of yours with the id '{request_id[:128]}' runs here: it may have ended already", "id"
        )
    await exchange.send_json({"id": request_id, "object": "request", "cancelled": True})


def _flag(exchange: Exchange, name: str) -> bool:
    value = exchange.request.query_params.get(name, "0")
    if value not in ("0", "1"):
        raise InvalidRequest(f"{name}: it is 1 or 0", name)
    return value == "1"


def _key_if_any(exchange: Exchange) -> Key | None:
    """The key of a request that needs none."""
    with suppress(InvalidKey):
        return exchange.lane.keys.key_of(exchange.request.headers.get("authorization"))
    return None


def _is_of_own_site(exchange: Exchange) -> bool:
    config = exchange.lane.config
    try:
        require_own_site(exchange.request.scope["headers"], config.allowed_hosts, config.cors_origins)
    except Forbidden:
        return False
    return True

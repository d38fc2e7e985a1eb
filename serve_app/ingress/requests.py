"""`DELETE /v1/requests/{id}`: a request is called off by whoever sent it."""

from serve_app.errors import RequestNotFound
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.lane import Lane


async def cancel_request(exchange: Exchange, lane: Lane) -> None:
    """Stops the engine's work on it. Its own client is told `request_cancelled`."""
    request_id = exchange.request.path_params["id"]
    is_found = lane.running.cancel(request_id, exchange.key)
    if not is_found and not await lane.cancel_elsewhere(request_id, exchange.key):
        raise RequestNotFound(
            f"no request of yours with the id '{request_id[:128]}' runs here: it may have ended already", "id"
        )
    await exchange.send_json({"id": request_id, "object": "request", "cancelled": True})

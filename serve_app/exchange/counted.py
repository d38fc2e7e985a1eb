"""How many requests one HTTP request is: as many as it has an engine make answers."""

from serve_app.exchange.exchange import Exchange
from serve_app.exchange.lane import Lane

_ON_ARRIVAL = 1  # is counted of every request, whatever becomes of it


async def count_answers(exchange: Exchange, lane: Lane, num_answers: int) -> None:
    """Count the answers that this request asks for, of all its prompts and images, before any of them is begun.

    Raises `RateLimited` where the key has fewer requests left.
    """
    if exchange.key is not None and num_answers > _ON_ARRIVAL:
        more = num_answers - _ON_ARRIVAL
        exchange.limit_headers = await lane.budget.take(exchange.key, requests=more, counted=_ON_ARRIVAL)


async def count_attempt(exchange: Exchange, lane: Lane) -> None:
    """Count one more answer, that nobody knew of when the request came. Raises as `count_answers` does."""
    if exchange.key is not None:
        exchange.limit_headers = await lane.budget.take(exchange.key, requests=1)

"""OpenAI's list of models, each with its state, tasks, engine and context length."""

from serve_app.errors import Forbidden
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.lane import Lane

_LONGEST_NAME = 256  # of what is looked up and told again


async def list_models(exchange: Exchange, lane: Lane) -> None:
    """OpenAI's list, each model with its state, tasks, engine and context length."""
    tells_all = lane.tells_all(exchange.key)
    listed = {"object": "list", "data": [e.as_json(with_reason=tells_all) for e in lane.visible(exchange.key)]}
    refused = lane.catalog.refused_config if tells_all else None
    await exchange.send_json(listed | ({"refused_config": refused} if refused else {}))


async def retrieve_model(exchange: Exchange, lane: Lane) -> None:
    """One model of the list; ids may contain slashes."""
    name = exchange.request.path_params["id"][:_LONGEST_NAME]
    entry = lane.catalog.find(name)
    if exchange.key is not None and not exchange.key.may_use(name):
        raise Forbidden(f"this key may not use model '{name}'", "model")
    await exchange.send_json(entry.as_json(with_reason=lane.tells_all(exchange.key)))

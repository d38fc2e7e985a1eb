"""OpenAI's list of models, each with its state, tasks, engine and context length."""

from serve_app.errors import Forbidden
from serve_app.exchange.exchange import Exchange

_LONGEST_NAME = 256  # that is looked up, and repeated in an error


async def list_models(exchange: Exchange) -> None:
    """OpenAI's list, each model with its state, tasks, engine and context length."""
    lane, may_see_all = exchange.lane, exchange.lane.may_see_all(exchange.key)
    entries = [entry.as_json(with_reason=may_see_all) for entry in lane.visible(exchange.key)]
    refused = lane.catalog.refused_config if may_see_all else None
    await exchange.send_json({"object": "list", "data": entries} | ({"refused_config": refused} if refused else {}))


async def retrieve_model(exchange: Exchange) -> None:
    """One model of the list; ids may contain slashes."""
    name = exchange.request.path_params["id"][:_LONGEST_NAME]
    entry = exchange.lane.catalog.find(name)
    if exchange.key is not None and not exchange.key.may_use(name):
        raise Forbidden(f"this key may not use model '{name}'", "model")
    await exchange.send_json(entry.as_json(with_reason=exchange.lane.may_see_all(exchange.key)))

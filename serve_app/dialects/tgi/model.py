"""Which model a request in TGI's dialect means: its bodies name none."""

from serve_app.dialects.sampling_body import MAX_MODEL_CHARACTERS
from serve_app.errors import InvalidRequest
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.lane import Lane
from serve_app.messages import Task
from serve_app.models.entry import ModelEntry


def choose_model(
    exchange: Exchange,
    lane: Lane,
    named: str | None = None,
    adapter: str | None = None,
    task: Task = "chat",
    *,
    with_images: bool = False,
) -> ModelEntry:
    """The model that answers, or the adapter of it that the request names; it is the exchange's from here on.

    What the address and headers say stands above what is `named` in the body.
    """
    wanted = wanted_model(exchange) or named
    model = lane.choose(adapter if adapter is not None else wanted, task, exchange.key, with_images=with_images)
    if adapter is not None and model.base is None:
        raise InvalidRequest(f"parameters.adapter_id: '{model.name}' is no adapter but a model", "parameters")
    if adapter is not None and wanted is not None and model.base != lane.choose(wanted, task, exchange.key).name:
        raise InvalidRequest(f"parameters.adapter_id: '{model.name}' is an adapter of '{model.base}'", "parameters")
    exchange.set_model(model.name)
    return model


def wanted_model(exchange: Exchange) -> str | None:
    """What the header and the query say. Raises `InvalidRequest` where they differ."""
    headers, query = exchange.request.headers.getlist("x-model"), exchange.request.query_params.getlist("model")
    given = {*headers, *query}
    if len(given) > 1 or any(len(name) > MAX_MODEL_CHARACTERS for name in given):
        raise InvalidRequest("X-Model and ?model=: give the name of one model, in one of them", "X-Model")
    return given.pop() if given else None

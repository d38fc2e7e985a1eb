"""Which model a request in TGI's dialect means: its bodies name none."""

from serve_app.dialects.sampling_body import MAX_MODEL_CHARACTERS
from serve_app.errors import InvalidRequest
from serve_app.exchange.exchange import Exchange
from serve_app.messages import Task
from serve_app.models.entry import ModelEntry


def choose_model(
    exchange: Exchange,
    body_model: str | None = None,
    adapter: str | None = None,
    task: Task = "chat",
    *,
    with_images: bool = False,
) -> ModelEntry:
    """The model that answers, or the adapter of it that the request names.

    The address and the headers take precedence over the body.
    """
    name = model_outside_body(exchange) or body_model
    if adapter is None:
        return exchange.choose(name, task, with_images=with_images)
    model = exchange.lane.choose(adapter, task, exchange.key, with_images=with_images)
    if model.base is None:
        raise InvalidRequest(f"parameters.adapter_id: '{model.name}' is no adapter but a model", "parameters")
    if name is not None and model.base != exchange.lane.choose(name, task, exchange.key).name:
        raise InvalidRequest(f"parameters.adapter_id: '{model.name}' is an adapter of '{model.base}'", "parameters")
    exchange.set_model(model.name)
    return model


def model_outside_body(exchange: Exchange) -> str | None:
    """The name in the header or the query. Raises `InvalidRequest` where they differ."""
    request = exchange.request
    names = {*request.headers.getlist("x-model"), *request.query_params.getlist("model")}
    if len(names) > 1 or any(len(name) > MAX_MODEL_CHARACTERS for name in names):
        raise InvalidRequest("X-Model and ?model=: give the name of one model, in one of them", "X-Model")
    return names.pop() if names else None

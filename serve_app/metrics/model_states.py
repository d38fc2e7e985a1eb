"""How the ingress sees its models, as gauges that are read at each snapshot: each model's state and replicas.

A model that nobody asks for is therefore also seen to have failed. Knows nothing about where the states come from.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serve_app.metrics import specs
from serve_app.metrics.exposition import metric_of
from serve_app.models.entry import ModelEntry


class Models(Protocol):
    """The list of models, and what is wrong with a newer list of them, if anything."""

    refused_config: str | None

    def models(self) -> Sequence[ModelEntry]: ...


class ModelStates(Collector):
    """The gauges of these models, each of which has one of `states`."""

    def __init__(self, states: Iterable[str], models: Models) -> None:
        self._states = tuple(states)
        self._models = models

    def collect(self) -> Iterable[Metric]:
        models = self._models.models()
        states = (
            ({"model": model.name, "state": state}, float(model.state == state))
            for model in models
            for state in self._states
        )
        replicas = (
            ({"model": model.name, "state": state}, number)
            for model in models
            if model.base is None  # an adapter shares its base's replicas
            for state, number in (("serving", model.num_replicas), ("starting", model.num_starting))
        )
        is_refused = self._models.refused_config is not None
        return [
            metric_of(specs.MODEL_STATE, states),
            metric_of(specs.MODEL_REPLICAS, replicas),
            metric_of(specs.REFUSED_CONFIG, [({}, float(is_refused))]),
        ]

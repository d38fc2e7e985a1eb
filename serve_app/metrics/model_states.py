"""How the ingress sees its models, as gauges that are read at each snapshot: a state each, and how many replicas.

So a model that nobody asks is seen to have failed. Knows nothing of where the states come from.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serve_app.metrics import specs


class ModelStatus(Protocol):
    """What is told of a model; of an adapter `base` names the model whose replicas it shares."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def base(self) -> str | None: ...
    @property
    def num_replicas(self) -> int: ...
    @property
    def num_starting(self) -> int: ...


class Models(Protocol):
    """Where the models are known, and what is wrong with a newer list of them; None where nothing is."""

    refused_config: str | None

    def models(self) -> Sequence[ModelStatus]: ...


class ModelStates(Collector):
    """The gauges of these models, each of which has one of `states`."""

    def __init__(self, states: Iterable[str], models: Models) -> None:
        self._states = tuple(states)
        self._models = models

    def collect(self) -> Iterable[Metric]:
        states = GaugeMetricFamily(specs.MODEL_STATE.name, specs.MODEL_STATE.help, labels=specs.MODEL_STATE.labels)
        spec = specs.MODEL_REPLICAS
        replicas = GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
        for model in self._models.models():
            for state in self._states:
                states.add_metric([model.name, state], float(model.state == state))
            if model.base is None:
                replicas.add_metric([model.name, "serving"], model.num_replicas)
                replicas.add_metric([model.name, "starting"], model.num_starting)
        spec = specs.REFUSED_CONFIG
        refused = GaugeMetricFamily(spec.name, spec.help, float(self._models.refused_config is not None))
        return [states, replicas, refused]

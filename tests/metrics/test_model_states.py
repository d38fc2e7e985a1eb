"""The gauges of models' states and replicas, from what the catalog sees to the sidecar's text."""

from collections.abc import Sequence
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry

from serve_app.config.applications import MetricsConfig, RoutingConfig
from serve_app.messages import ModelDescription
from serve_app.metrics.model_states import ModelStates
from serve_app.metrics.registry import Metrics
from serve_app.metrics.sidecar import Sidecar
from serve_app.metrics.snapshot import Snapshot, Source
from serve_app.models.catalog import Catalog
from serve_app.models.entry import ModelEntry, State
from serve_app.placement import cluster
from tests.models.test_catalog import ASLEEP, FAILED_ONCE, GROWS, WAITS, nothing_loads


class Models:
    """What the gauges read."""

    def __init__(self, entries: Sequence[ModelEntry] = (), refused_config: str | None = None) -> None:
        self._entries = entries
        self.refused_config = refused_config

    def models(self) -> Sequence[ModelEntry]:
        return self._entries


async def describe(model: str) -> ModelDescription:
    return ModelDescription(("chat",), "scripted", "generic", None, False, adapters=("tuned",))


async def test_every_model_that_the_ingress_names_has_its_state_and_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that nobody asks for; an alias is none."""
    applications = {"grows": GROWS, "waits": WAITS, "asleep": ASLEEP, "fails": FAILED_ONCE}
    monkeypatch.setattr(cluster, "overviews", lambda: applications)
    catalog = Catalog(describe, nothing_loads, lambda: {"waits": "needs 4 GPU"})
    registry = CollectorRegistry()
    registry.register(ModelStates(get_args(State), catalog))

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"serve_app_model_{name}", labels)

    catalog.configure(RoutingConfig(models=(*applications, "tuned", "absent"), aliases={"any": {"grows": 1}}))
    assert value("state", model="grows", state="pending") == 1, "not looked up yet"
    await catalog.refresh()
    states = {"grows": "ready", "waits": "pending", "asleep": "scaled_to_zero", "fails": "loading",
              "tuned": "ready", "absent": "pending", "any": ""}  # fmt: skip
    for model, state in states.items():
        expected = {name: float(name == state) if state else None for name in get_args(State)}
        assert {name: value("state", model=model, state=name) for name in get_args(State)} == expected
    replicas = {name: tuple(value("replicas", model=name, state=state) for state in ("serving", "starting"))
                for name in states}  # fmt: skip
    assert replicas == {
        "grows": (1, 1), "waits": (0, 1), "asleep": (0, 0), "fails": (0, 0),
        "tuned": (None, None), "absent": (0, 0), "any": (None, None),
    }  # fmt: skip
    catalog.configure(RoutingConfig(models=("grows",)))
    assert value("state", model="fails", state="loading") is None, "it was taken out"


def test_the_sidecar_tells_them_for_each_ingress() -> None:
    sidecar = Sidecar(MetricsConfig())
    for replica, refused in (("in-0", None), ("in-1", "aliases: 'x' leads to 'y'")):
        registry = CollectorRegistry()
        registry.register(ModelStates(get_args(State), Models([ModelEntry("m", "failed")], refused)))
        source = Source("ingress", "ingress", replica, "p", 0.0)
        assert sidecar.record(Snapshot(source, 1, 0.0, Metrics(registry).read()))
    told = {(s.name, *sorted(s.labels.values())): s.value for m in sidecar.exposition().collect() for s in m.samples}
    for replica, refused_config in (("in-0", 0), ("in-1", 1)):
        assert told["serve_app_model_state", "failed", replica, "m"] == 1
        assert told["serve_app_model_state", replica, "m", "ready"] == 0
        assert told["serve_app_model_replicas", replica, "m", "serving"] == 0
        assert told["serve_app_refused_config", replica] == refused_config

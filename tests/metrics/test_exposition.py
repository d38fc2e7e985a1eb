"""The two pages that the sidecar serves: Prometheus text that others can read, and the summary."""

import shutil
import subprocess
from dataclasses import replace

import pytest
from prometheus_client import Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from serve_app.config.applications import MetricsConfig
from serve_app.metrics.model_states import ModelStates
from serve_app.metrics.sidecar import Sidecar
from serve_app.metrics.specs import METRICS
from serve_app.models.entry import ModelEntry
from tests.metrics.test_model_states import Models
from tests.metrics.test_sidecar import Process, get, text_of
from tests.scripted_clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(5000.0)


@pytest.fixture
def sidecar(clock: Clock) -> Sidecar:
    return Sidecar(MetricsConfig(), clock, Clock(1e9))


def full(clock: Clock) -> Sidecar:
    """A sidecar with every metric of the catalog, two processes of each kind, and an engine's own series."""
    sidecar = Sidecar(MetricsConfig(), clock, Clock(1e9))
    for num in range(2):
        ingress, replica = Process(clock, "ingress", f"in-{num}"), Process(clock, "model", f"re-{num}")
        with ingress.metrics.request("demo") as tracker, ingress.metrics.image("demo"):
            tracker.first_token()
            ingress.metrics.caption_checked("demo", ())
            tracker.ignored_fields(1)
        with ingress.metrics.waiting("demo", 10):
            pass
        ingress.registry.register(ModelStates(("ready",), Models([ModelEntry("demo", "ready", num_replicas=2)])))
        with replica.metrics.generation("demo") as generation:
            generation.started()
        replica.generate(5)
        replica.metrics.watch_queue("demo", lambda: 1)
        replica.metrics.watch_kv_cache("demo", lambda: 0.5)
        Gauge("vllm:kv_cache_usage", "A foreign name.", registry=replica.registry).set(0.5)
        sidecar.record(ingress.snapshot())
        sidecar.record(replica.snapshot())
    return sidecar


async def test_the_text_has_each_metric_once_and_parses(clock: Clock) -> None:
    response = await get(full(clock))
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    for spec in METRICS:
        assert families[spec.name.removesuffix("_total")].type == spec.type
        for word in ("HELP", "TYPE"):
            assert response.text.count(f"# {word} {spec.name} ") == 1
    for family in families.values():
        assert family.name.startswith(("serve_app_sidecar", "serve_app_sources", "serve_app_refused")) or all(
            sample.labels["replica"] and sample.labels["model"] == "demo" for sample in family.samples
        )
    assert [s.labels for s in families["vllm:kv_cache_usage"].samples] == [
        {"model": "demo", "replica": "re-0"},
        {"model": "demo", "replica": "re-1"},
    ]


async def test_openmetrics_where_it_is_asked_for(clock: Clock) -> None:
    response = await get(full(clock), accept="application/openmetrics-text; version=1.0.0")
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    families = parse_openmetrics(response.text)  # type: ignore[no-untyped-call]  # prometheus_client's
    assert {family.name for family in families} > {"serve_app_tokens"}


@pytest.mark.parametrize("path", ["/metrics", "/metrics/"])
async def test_the_bare_prefix_needs_no_redirect(clock: Clock, path: str) -> None:
    assert (await get(full(clock), path)).status_code == 200
    assert (await get(full(clock), "/metrics/summary")).json()["models"].keys() == {"demo"}
    assert (await get(full(clock), "/metrics/nothing")).status_code == 404


async def test_an_empty_sidecar_answers(sidecar: Sidecar) -> None:
    assert "serve_app_sidecar_start_time_seconds 1e+09" in (await get(sidecar)).text
    summary = (await get(sidecar, "/metrics/summary")).json()
    assert summary["models"] == {}
    assert summary["totals"]["tokens_per_second"] == {"last_10s": None, "last_60s": None}


def test_types_that_disagree_and_series_that_stand_twice_are_left_out(clock: Clock, sidecar: Sidecar) -> None:
    first, second = (Process(clock, "model", f"re-{num}") for num in range(2))
    Gauge("engine_load", "As a gauge.", registry=first.registry).set(1)
    twice = Gauge("engine_share", "Has a label of our name.", ["replica"], registry=first.registry)
    twice.labels("a").set(1)
    twice.labels("b").set(2)
    Gauge("engine_load", "As another type.", registry=second.registry).set(2)
    snapshot = second.snapshot()
    retyped = tuple(replace(m, type="unknown") if m.name == "engine_load" else m for m in snapshot.metrics)
    sidecar.record(first.snapshot())
    sidecar.record(replace(snapshot, metrics=retyped))
    text = text_of(sidecar)
    assert text.count("# TYPE engine_load ") == text.count("engine_load{") == 1
    assert text.count("engine_share{") == 1


def test_promtool_finds_nothing_wrong(clock: Clock) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool isn't installed (Debian: apt-get install prometheus)")
    text = text_of(full(clock))
    # The foreign series is named as vLLM names them, with a colon, which promtool would lint.
    ours = "".join(line for line in text.splitlines(keepends=True) if "vllm:" not in line)
    done = subprocess.run([promtool, "check", "metrics"], input=ours, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr

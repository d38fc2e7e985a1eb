"""What one process counts, with a clock that is moved by hand."""

import asyncio
from bisect import bisect_left
from contextlib import suppress

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from serve_app.dialects.captions.quality import FINDINGS
from serve_app.errors import InternalError, Overloaded, ServeAppError, concrete_errors
from serve_app.messages import Chunk
from serve_app.metrics.exposition import Exposition
from serve_app.metrics.histogram import BOUND_LABELS, BOUNDS, BUCKET_RATIO, DurationHistogram, percentile
from serve_app.metrics.model_states import ModelStates
from serve_app.metrics.registry import Metrics
from serve_app.metrics.snapshot import Source
from serve_app.metrics.specs import METRICS, OUTCOMES, metrics_table
from tests.metrics.test_model_states import Models
from tests.scripted_clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(100.0)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry, clock: Clock) -> Metrics:
    return Metrics(registry, ["demo"], clock)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """The sample's value in the text that the sidecar makes of what is sent to it."""
    source = Source("ingress", "ingress", "in-1", "host:1", 0.0)
    exposition = Exposition([(source, metrics.read())], own=())
    samples = [sample for metric in exposition.collect() for sample in metric.samples]
    return next((s.value for s in samples if s.name == name and s.labels == labels | {"replica": "in-1"}), None)


def tokens(metrics: Metrics, kind: str) -> float | None:
    return value(metrics, "serve_app_tokens_total", model="demo", kind=kind)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "ok"),
        (asyncio.CancelledError(), "client_left"),
        (GeneratorExit(), "client_left"),
        (ZeroDivisionError(), "internal_error"),
        (ServeAppError("has no code of its own"), "internal_error"),
        *((error("no"), error.code) for error in concrete_errors()),
    ],
)
def test_what_leaves_the_block_is_the_outcome(metrics: Metrics, error: BaseException | None, outcome: str) -> None:
    for block in (metrics.request("demo"), metrics.image("demo")):
        with suppress(BaseException), block:
            if error:
                raise error
    assert value(metrics, "serve_app_requests_total", model="demo", outcome=outcome) == 1
    assert value(metrics, "serve_app_images_total", model="demo", outcome=outcome) == 1
    assert value(metrics, "serve_app_requests_in_flight", model="demo") == 0
    assert outcome in OUTCOMES


def test_an_outcome_told_by_hand_stands(metrics: Metrics) -> None:
    with suppress(asyncio.CancelledError), metrics.request("demo") as tracker:
        tracker.outcome(Overloaded.code)
        tracker.outcome(InternalError.code)
        raise asyncio.CancelledError
    assert value(metrics, "serve_app_requests_total", model="demo", outcome="overloaded") == 1
    with pytest.raises(AssertionError, match="'of my own' is none of"), metrics.request("demo") as tracker:
        tracker.outcome("of my own")


def test_a_request_is_in_flight_under_its_model(metrics: Metrics) -> None:
    in_flight = "serve_app_requests_in_flight"
    uncounted = metrics.request()
    uncounted.set_model("demo")
    uncounted.first_token()
    with metrics.request() as tracker:
        assert value(metrics, in_flight, model="none") == 1
        tracker.set_model("demo")
        assert value(metrics, in_flight, model="none") == 0
        assert value(metrics, in_flight, model="demo") == 1
    assert value(metrics, in_flight, model="demo") == 0
    assert value(metrics, "serve_app_time_to_first_token_seconds_count", model="demo") is None


def test_names_that_clients_make_up_are_no_labels(metrics: Metrics) -> None:
    for name in ("", "Demo", "x" * 1000, 'a"} 1\n'):
        with metrics.request(name), metrics.image(name):
            pass
    labels = {series.model for metric in metrics.read() for series in metric.series}
    assert labels == {"none"}
    metrics.models = frozenset({"Demo"})
    assert metrics.label("Demo") == "Demo"


def test_request_times(metrics: Metrics, clock: Clock) -> None:
    with metrics.request("demo") as tracker:
        clock.now_s += 0.5
        tracker.first_token()
        clock.now_s += 1.5
        tracker.first_token()
    assert value(metrics, "serve_app_time_to_first_token_seconds_sum", model="demo") == 0.5
    assert value(metrics, "serve_app_time_to_first_token_seconds_count", model="demo") == 1
    assert value(metrics, "serve_app_request_seconds_sum", model="demo") == 2.0


def test_a_chunk_of_n_tokens_is_n_gaps(metrics: Metrics, clock: Clock) -> None:
    with metrics.generation("demo") as generation:
        clock.now_s += 2
        generation.started()
        generation.started(77.0)
        for seconds, num_tokens in ((3, 2), (1, 4), (1, 0), (2, 3)):
            clock.now_s += seconds
            generation.chunk(Chunk("", num_tokens, 7))
    # The first chunk waits for the prompt; then 4 gaps of 1/4 s and, after an empty chunk, 3 gaps of 3/3 s.
    assert value(metrics, "serve_app_inter_token_seconds_count", model="demo") == 7
    assert value(metrics, "serve_app_inter_token_seconds_sum", model="demo") == 4.0
    quarter = BOUND_LABELS[bisect_left(BOUNDS, 0.25)]
    assert value(metrics, "serve_app_inter_token_seconds_bucket", model="demo", le=quarter) == 4
    assert value(metrics, "serve_app_queue_seconds_sum", model="demo") == 2.0
    assert value(metrics, "serve_app_queue_seconds_count", model="demo") == 1
    assert (tokens(metrics, "prompt"), tokens(metrics, "generated"), tokens(metrics, "wasted")) == (
        7,
        9,
        None,
    )


@pytest.mark.parametrize("error", [asyncio.CancelledError(), GeneratorExit(), Overloaded("full")])
def test_tokens_are_wasted_unless_the_last_chunk_was_handed_on(metrics: Metrics, error: BaseException) -> None:
    with pytest.raises(type(error)), metrics.generation("demo") as generation:
        raise error
    assert tokens(metrics, "wasted") is None
    with suppress(type(error)), metrics.generation("demo") as generation:
        generation.chunk(Chunk("a", 3, 5))
        raise error
    assert tokens(metrics, "wasted") == 3
    with suppress(type(error)), metrics.generation("demo") as generation:
        generation.chunk(Chunk("a", 10, 5, "stop"))
        raise error
    assert (tokens(metrics, "wasted"), tokens(metrics, "generated")) == (3, 13)


def test_a_queue_is_read_when_it_is_asked_for(metrics: Metrics) -> None:
    waiting = [1, 2]
    metrics.watch_queue("demo", lambda: len(waiting))
    waiting.append(3)
    assert value(metrics, "serve_app_requests_queued", model="demo") == 3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("distribution", "tolerance"),
    # Inside a bucket the mass is taken as even; a sharp edge in it costs up to the bucket's whole width.
    [("lognormal", 0.05), ("exponential", 0.05), ("uniform", BUCKET_RATIO - 1)],
)
def test_percentiles_are_within_a_bucket(distribution: str, tolerance: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    seconds = {
        "lognormal": random.lognormal(-3, 1, 20_000),
        "uniform": random.uniform(0.01, 0.3, 20_000),
        "exponential": random.exponential(0.2, 20_000),
    }[distribution]
    spec = next(spec for spec in METRICS if spec.type == "histogram")
    durations = DurationHistogram(spec).of("demo")
    for second in seconds:
        durations.observe(float(second))
    *buckets, _ = durations.read()
    for share in (0.5, 0.9, 0.99):
        assert percentile(buckets, share) == pytest.approx(np.quantile(seconds, share), rel=tolerance)


def test_percentiles_at_the_edges() -> None:
    spec = next(spec for spec in METRICS if spec.type == "histogram")
    durations = DurationHistogram(spec).of("demo")
    assert percentile([], 0.5) is None
    assert percentile([0.0] * 53, 0.5) is None
    durations.observe(1e6, 3)
    *buckets, _ = durations.read()
    assert percentile(buckets, 0.5) == pytest.approx(324, rel=0.01)


def test_what_the_guard_found_is_counted_once_for_each_finding(metrics: Metrics) -> None:
    for findings in ((), ("loop", "truncated"), ("loop",)):
        metrics.caption_checked("demo", findings)
    metrics.caption_checked("made up", FINDINGS)
    counted = {name: value(metrics, "serve_app_caption_guard_total", model="demo", finding=name)
               for name in ("clean", "loop", "truncated", "empty")}  # fmt: skip
    assert counted == {"clean": 1, "loop": 2, "truncated": 1, "empty": None}
    assert value(metrics, "serve_app_caption_guard_total", model="none", finding="empty") == 1


def test_fields_that_were_read_over_are_counted_by_model(metrics: Metrics) -> None:
    with metrics.request() as tracker:
        tracker.set_model("demo")
        tracker.ignored_fields(2)
    assert value(metrics, "serve_app_ignored_fields_total", model="demo") == 2


def test_the_cache_of_an_engine_that_has_a_bound(metrics: Metrics) -> None:
    metrics.watch_kv_cache("demo", lambda: None)
    assert value(metrics, "serve_app_kv_cache_use_ratio", model="demo") is None
    use: list[float | None] = [0.25, 0.5, None]
    metrics.watch_kv_cache("demo", lambda: use.pop(0))
    assert value(metrics, "serve_app_kv_cache_use_ratio", model="demo") == 0.5
    assert value(metrics, "serve_app_kv_cache_use_ratio", model="demo") == 0, "its engine has ended"


def test_the_catalog_is_what_a_process_exports(metrics: Metrics, registry: CollectorRegistry) -> None:
    registry.register(ModelStates(("ready",), Models()))
    exported = {(m.name + "_total" * (m.type == "counter"), m.type, m.documentation) for m in registry.collect()}
    exported |= {(m.name, m.type, m.help) for m in (histogram.read() for histogram in metrics._histograms)}
    assert exported == {(s.name, s.type, s.help) for s in METRICS if s.observed_by != "sidecar"}
    assert metrics_table().count("\n") == len(METRICS) + 2

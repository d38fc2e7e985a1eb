"""The sidecar's arithmetic, on numbers that can be checked by hand."""

import asyncio
import re
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge

from serve_app.access.keys import Keyring
from serve_app.config.applications import MetricsConfig
from serve_app.config.http import KeysConfig
from serve_app.errors import Overloaded
from serve_app.messages import Chunk
from serve_app.metrics import sidecar as sidecar_module
from serve_app.metrics.app import create_metrics_app
from serve_app.metrics.registry import Metrics
from serve_app.metrics.sidecar import Sidecar
from serve_app.metrics.snapshot import Snapshot, Source, SourceRole, Waiting
from tests.scripted_clock import Clock


class Process:
    """An ingress or a replica with a registry of its own."""

    def __init__(self, clock: Clock, role: SourceRole, replica: str, started_at: float = 0.0) -> None:
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, ["demo", "other"], clock)
        application = "ingress" if role == "ingress" else "demo"
        self._source = Source(role, application, replica, "host:1", started_at)
        self._clock = clock
        self.sequence = 0

    def snapshot(self, is_final: bool = False) -> Snapshot:
        self.sequence += 1
        return Snapshot(self._source, self.sequence, self._clock.now_s, self.metrics.read(), is_final)

    def generate(self, num_tokens: int, gap_s: float = 0.1, model: str = "demo") -> None:
        """Tokens one by one, at a fixed pace, without moving the clock."""
        before = self._clock.now_s
        with self.metrics.generation(model) as generation:
            for _ in range(num_tokens):
                generation.chunk(Chunk("a", 1, 10))
                self._clock.now_s += gap_s
        self._clock.now_s = before


@pytest.fixture
def clock() -> Clock:
    return Clock(5000.0)


@pytest.fixture
def sidecar(clock: Clock) -> Sidecar:
    return Sidecar(MetricsConfig(stale_after_s=10), clock, Clock(1e9))


def demo(sidecar: Sidecar) -> dict[str, Any]:
    row: dict[str, Any] = sidecar.summary()["models"]["demo"]
    return row


async def get(sidecar: Sidecar, path: str = "/metrics", accept: str = "") -> httpx.Response:
    """As Ray Serve mounts it: the whole path, and the prefix as `root_path`."""
    transport = httpx.ASGITransport(create_metrics_app(sidecar, Keyring(KeysConfig())), root_path="/metrics")
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(path, headers={"accept": accept})


def text_of(sidecar: Sidecar) -> str:
    return asyncio.run(get(sidecar)).text


def test_what_waits_in_all_ingresses_is_told_by_model(clock: Clock, sidecar: Sidecar) -> None:
    ingresses = [Process(clock, "ingress", f"in-{i}") for i in range(2)]
    lane = Process(clock, "model", "re")
    with ExitStack() as waiting:
        for process in (*ingresses, ingresses[1], lane):
            waiting.enter_context(process.metrics.waiting("demo", 10))
        waiting.enter_context(ingresses[0].metrics.waiting("other", 500))
        for process in (*ingresses, lane):
            sidecar.record(process.snapshot())
        assert sidecar.waiting("demo") == Waiting(3, 30)  # a lane's own are no ingress's
        assert sidecar.waiting("other") == Waiting(1, 500)
        assert sidecar.waiting("third") == Waiting()
        assert demo(sidecar)["waiting"] == 4
        clock.now_s += 2.0
    sidecar.record(ingresses[1].snapshot())
    sidecar.record(ingresses[0].snapshot(is_final=True))
    assert sidecar.waiting("demo") == Waiting()
    assert demo(sidecar)["turn_seconds"]["last_60s"]["p50"] == pytest.approx(2.0, rel=0.3)
    clock.now_s += 20.0
    assert sidecar.waiting("other") == Waiting()


def test_two_ingresses_and_three_replicas_are_one_summary(clock: Clock, sidecar: Sidecar) -> None:
    ingresses = [Process(clock, "ingress", f"in-{i}") for i in range(2)]
    replicas = [Process(clock, "model", f"re-{i}") for i in range(3)]
    with pytest.raises(Overloaded), ingresses[0].metrics.request("demo"):
        raise Overloaded("full")
    with suppress(asyncio.CancelledError), ingresses[1].metrics.request("demo") as tracker:
        tracker.first_token()
        raise asyncio.CancelledError
    for ingress in ingresses:
        with ingress.metrics.request("demo"):
            pass
    for num, replica in enumerate(replicas, start=1):
        replica.generate(10 * num)
        replica.metrics.watch_queue("demo", lambda num=num: num)  # type: ignore[misc]  # a lambda with a default
    with suppress(asyncio.CancelledError), replicas[0].metrics.generation("demo") as generation:
        generation.chunk(Chunk("a", 4, 10))
        raise asyncio.CancelledError
    with ingresses[0].metrics.request("demo"), ingresses[1].metrics.request("other"):
        assert all(sidecar.record(process.snapshot()) for process in ingresses + replicas)
    summary = sidecar.summary()
    row = summary["models"]["demo"]
    assert summary["sources"] == {"ingress": 2, "model": 3}
    assert summary["started_at"] == 1e9
    assert (row["requests"], row["failures"], row["clients_left"]) == (4, {"overloaded": 1}, 1)
    assert row["tokens"] == {"prompt": 40, "generated": 64, "wasted": 4}
    assert (row["in_flight"], row["queued"]) == (1, 6)
    assert summary["totals"]["in_flight"] == 2
    assert summary["totals"]["requests"] == 4
    assert row["inter_token_seconds"]["ever"]["p50"] == pytest.approx(0.1, rel=0.3)
    assert summary["models"]["other"]["inter_token_seconds"]["ever"] == {
        "p50": None,
        "p90": None,
        "p99": None,
    }


def test_rates_are_tokens_over_true_time(clock: Clock, sidecar: Sidecar) -> None:
    replica = Process(clock, "model", "re")
    rates = []
    for _ in range(100):
        sidecar.record(replica.snapshot())
        rates.append(demo(sidecar)["tokens_per_second"] if replica.sequence > 1 else None)
        clock.now_s += 1
        replica.generate(30)
    # Null until a whole second was seen; then exact at once, whatever the window.
    assert rates[1] == {"last_10s": None, "last_60s": None}
    for rate in rates[2:]:
        assert rate == {"last_10s": pytest.approx(30), "last_60s": pytest.approx(30)}
    for _ in range(30):
        clock.now_s += 1
        sidecar.record(replica.snapshot())
    # The first of these brought 30 tokens more; the window ends a second ago: 29 seconds of it are idle.
    assert demo(sidecar)["tokens_per_second"] == {"last_10s": 0, "last_60s": pytest.approx(30 * 31 / 60)}


def test_a_late_push_is_spread_over_the_time_it_covers(clock: Clock, sidecar: Sidecar) -> None:
    replica = Process(clock, "model", "re")
    sidecar.record(replica.snapshot())
    clock.now_s += 60
    sidecar.record(replica.snapshot())
    clock.now_s += 40
    replica.generate(4000)
    sidecar.record(replica.snapshot())
    clock.now_s += 1
    assert demo(sidecar)["tokens_per_second"]["last_10s"] == pytest.approx(100)
    assert demo(sidecar)["tokens_per_second"]["last_60s"] == pytest.approx(4000 / 60)


def test_percentiles_of_the_last_minute_forget(clock: Clock, sidecar: Sidecar) -> None:
    replica = Process(clock, "model", "re")
    replica.generate(100, gap_s=1.0)
    sidecar.record(replica.snapshot())
    clock.now_s += 70
    replica.generate(100, gap_s=0.01)
    sidecar.record(replica.snapshot())
    gaps = demo(sidecar)["inter_token_seconds"]
    assert gaps["ever"]["p90"] == pytest.approx(1.0, rel=0.3)
    assert gaps["last_60s"]["p99"] == pytest.approx(0.01, rel=0.3)
    clock.now_s += 70
    assert demo(sidecar)["inter_token_seconds"]["last_60s"] == {"p50": None, "p90": None, "p99": None}


def died(sidecar: Sidecar) -> dict[str, float]:
    """Requests that died with their process, by model, in the text; the summary says the same."""
    found = re.findall(
        r'^serve_app_requests_total\{model="(\w+)",outcome="replica_died",replica="dead"\} (\S+)$',
        text_of(sidecar), re.MULTILINE,
    )  # fmt: skip
    in_text = {model: float(value) for model, value in found}
    models = sidecar.summary()["models"]
    assert {model: models[model]["failures"].get("replica_died", 0) for model in in_text} == in_text
    return in_text


def test_what_a_dead_process_was_answering_has_an_outcome(clock: Clock, sidecar: Sidecar) -> None:
    dies, goes = (Process(clock, "ingress", name) for name in ("dies", "goes"))
    for process in (dies, goes):
        with process.metrics.request("demo"), process.metrics.request("demo"), process.metrics.request("other"):
            sidecar.record(process.snapshot())
    assert died(sidecar) == {"demo": 0, "other": 0}  # from nought on, or no rate would see it
    sidecar.record(goes.snapshot(is_final=True))
    clock.now_s += 11
    assert died(sidecar) == {"demo": 2, "other": 1}
    successor = Process(clock, "ingress", "next")
    with successor.metrics.request("demo"):
        sidecar.record(successor.snapshot())
        clock.now_s += 11
        assert died(sidecar) == {"demo": 3, "other": 1}


def test_who_was_silent_and_speaks_again_is_not_counted_twice(clock: Clock, sidecar: Sidecar) -> None:
    """As after a moment in which the sidecar itself got no processor. A count never falls: the next one is due."""
    process, other = (Process(clock, "ingress", name) for name in ("silent", "other"))
    with process.metrics.request("demo"), process.metrics.request("demo"):
        sidecar.record(process.snapshot())
        clock.now_s += 11
        assert died(sidecar)["demo"] == 2
    sidecar.record(process.snapshot())
    assert died(sidecar)["demo"] == 2
    with other.metrics.request("demo"), other.metrics.request("demo"), other.metrics.request("demo"):
        sidecar.record(other.snapshot())
        clock.now_s += 11
        assert died(sidecar)["demo"] == 3


async def test_nobody_died_while_the_sidecar_itself_could_not_listen(clock: Clock, sidecar: Sidecar) -> None:
    watch = asyncio.create_task(sidecar.watch())
    speaks, dies = (Process(clock, "ingress", name) for name in ("speaks", "dies"))
    try:
        with speaks.metrics.request("demo"), dies.metrics.request("demo"):
            sidecar.record(speaks.snapshot())
            sidecar.record(dies.snapshot())
            await asyncio.sleep(0)  # its first look
            clock.now_s += 11
            sidecar.record(speaks.snapshot())
            assert "replica_died" not in demo(sidecar)["failures"]
            for _ in range(11):  # who doesn't speak now either is dead
                clock.now_s += 1
                sidecar.record(speaks.snapshot())
            assert demo(sidecar)["failures"] == {"replica_died": 1}
    finally:
        watch.cancel()


def test_a_silent_process_leaves_the_text_and_its_counts_stay(clock: Clock, sidecar: Sidecar) -> None:
    replica, ingress = Process(clock, "model", "re"), Process(clock, "ingress", "in")
    replica.generate(10)
    replica.metrics.watch_queue("demo", lambda: 5)
    sidecar.record(ingress.snapshot())
    sidecar.record(replica.snapshot())
    assert 'replica="re"' in text_of(sidecar)
    clock.now_s += 9
    sidecar.record(ingress.snapshot())
    clock.now_s += 1.5
    assert 'replica="re"' not in text_of(sidecar)
    assert sidecar.summary()["sources"] == {"ingress": 1, "model": 0}
    assert (demo(sidecar)["queued"], demo(sidecar)["tokens"]["generated"]) == (0, 10)
    replica.generate(5)
    sidecar.record(replica.snapshot())
    assert (demo(sidecar)["queued"], demo(sidecar)["tokens"]["generated"]) == (5, 15)


def test_a_goodbye_ends_gauges_at_once(clock: Clock, sidecar: Sidecar) -> None:
    replica = Process(clock, "model", "re")
    replica.generate(10)
    replica.metrics.watch_queue("demo", lambda: 5)
    sidecar.record(replica.snapshot(is_final=True))
    text = text_of(sidecar)
    assert 'serve_app_tokens_total{kind="generated",model="demo",replica="re"} 10.0' in text
    assert "serve_app_requests_queued" not in text
    assert (demo(sidecar)["queued"], sidecar.summary()["sources"]["model"]) == (0, 0)


def test_a_process_that_restarts_under_its_name_counts_on(clock: Clock, sidecar: Sidecar) -> None:
    old = Process(clock, "model", "re", started_at=1.0)
    old.generate(10)
    late = old.snapshot()
    old.generate(10)
    latest = old.snapshot()
    assert sidecar.record(latest)
    assert not sidecar.record(latest)
    assert not sidecar.record(late)
    new = Process(clock, "model", "re", started_at=2.0)
    new.generate(30)
    assert sidecar.record(new.snapshot())
    assert not sidecar.record(old.snapshot())
    assert demo(sidecar)["tokens"]["generated"] == 50


def test_a_count_that_falls_began_again(clock: Clock, sidecar: Sidecar) -> None:
    first, second = Process(clock, "model", "re"), Process(clock, "model", "re")
    first.generate(10)
    sidecar.record(first.snapshot())
    second.generate(3)
    second.sequence = 1
    sidecar.record(second.snapshot())
    assert demo(sidecar)["tokens"]["generated"] == 13


def test_a_new_sidecar_has_the_totals_and_no_false_rate(clock: Clock, sidecar: Sidecar) -> None:
    replica = Process(clock, "model", "re")
    for _ in range(5):
        replica.generate(1000)
        sidecar.record(replica.snapshot())
        clock.now_s += 1
    before = demo(sidecar)["tokens"]
    fresh = Sidecar(MetricsConfig(), clock, Clock(2e9))
    assert fresh.summary()["models"] == {}
    for _ in range(4):
        fresh.record(replica.snapshot())
        clock.now_s += 1
    assert demo(fresh)["tokens"] == before
    assert demo(fresh)["tokens_per_second"]["last_10s"] == 0
    assert demo(fresh)["inter_token_seconds"]["ever"]["p50"] is not None
    assert demo(fresh)["inter_token_seconds"]["last_60s"]["p50"] is None
    assert fresh.summary()["started_at"] > sidecar.summary()["started_at"]


@pytest.mark.parametrize("delay_s", [0.0, 0.9, 2.7])
def test_words_that_waited_for_a_new_sidecar_make_no_false_rate(clock: Clock, delay_s: float) -> None:
    """80 tokens a second; the first snapshot waits for the sidecar's start, the next ones come at once."""
    replica = Process(clock, "model", "re")
    replica.sequence = 100
    fresh = Sidecar(MetricsConfig(), clock, Clock(2e9))
    replica.generate(1000)
    waiting = replica.snapshot()
    for _ in range(round(delay_s * 10)):
        replica.generate(8)
        clock.now_s += 0.1
    fresh.record(waiting)
    rates = []
    for _ in range(120):
        replica.generate(8)
        clock.now_s += 0.1
        if _ % 10 == 9:
            fresh.record(replica.snapshot())
        if (rate := demo(fresh)["tokens_per_second"]["last_10s"]) is not None:
            rates.append(rate)
    assert max(rates) <= 80.01
    assert rates[-1] == pytest.approx(80, rel=0.1)


def test_broken_sources_are_refused(clock: Clock, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar_module, "MAX_SAMPLES", 200)
    monkeypatch.setattr(sidecar_module, "MAX_SOURCES", 2)
    monkeypatch.setattr(sidecar_module, "MAX_MODELS", 2)
    broken = Process(clock, "model", "broken")
    gauge = Gauge("engine_requests", "By request id.", ["id"], registry=broken.registry)
    for request in range(201):
        gauge.labels(str(request)).set(1)
    assert not sidecar.record(broken.snapshot())
    crowd = Process(clock, "model", "crowd")
    crowd.metrics.models = frozenset("abc")
    for model in "abc":
        crowd.generate(1, model=model)
    assert not sidecar.record(crowd.snapshot())
    known = [Process(clock, "model", f"re-{i}") for i in range(3)]
    assert [sidecar.record(process.snapshot()) for process in known] == [True, True, False]
    assert sidecar.record(known[0].snapshot())
    text = text_of(sidecar)
    for reason in ("too_many_samples", "too_many_models", "too_many_sources"):
        assert f'serve_app_refused_snapshots_total{{reason="{reason}"}} 1.0' in text


def test_what_is_forgotten_is_bounded(clock: Clock, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar_module, "MAX_SILENT_SOURCES", 3)
    for num in range(20):
        replica = Process(clock, "model", f"re-{num}")
        replica.generate(2)
        sidecar.record(replica.snapshot())
        clock.now_s += 11
    assert demo(sidecar)["tokens"]["generated"] == 40
    assert len(sidecar._silent) == 3


def test_what_loads_is_told_until_it_is_ready_or_gone(clock: Clock, sidecar: Sidecar) -> None:
    replica, other = Process(clock, "model", "r-1"), Process(clock, "model", "r-2")
    sidecar.record(replace(replica.snapshot(), loading="downloading 1.2 of 4.9 GB"))
    sidecar.record(other.snapshot())  # one that is ready already
    assert sidecar.loading() == {"demo": "downloading 1.2 of 4.9 GB"}
    sidecar.record(replace(replica.snapshot(is_final=True), loading="loading weights"))
    assert sidecar.loading() == {}
    sidecar.record(replace(other.snapshot(), loading="loading weights"))
    clock.now_s += 11
    assert sidecar.loading() == {}

"""The reporter: it pushes, and no sidecar, however broken, reaches the process that it runs in."""

import asyncio
import gc
import logging
import pickle
from collections.abc import Awaitable, Callable

import pytest
from prometheus_client import CollectorRegistry, Gauge

from serve_app.messages import Chunk
from serve_app.metrics.histogram import BOUND_LABELS
from serve_app.metrics.registry import Metrics
from serve_app.metrics.reporter import Reporter
from serve_app.metrics.snapshot import MetricSnapshot, Snapshot, Source

SOURCE = Source("model", "demo", "replica-1", "host:1", 1000.0)


class Sidecar:
    """Takes snapshots; `answer` is called for each, and may fail."""

    def __init__(self, answer: Callable[[int], Awaitable[None]]) -> None:
        self.snapshots: list[Snapshot] = []
        self._answer = answer
        self._heard = asyncio.Condition()

    async def send(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)
        async with self._heard:
            self._heard.notify_all()
        await self._answer(len(self.snapshots))

    async def wait_for(self, num_snapshots: int) -> None:
        async with self._heard, asyncio.timeout(20):
            await self._heard.wait_for(lambda: len(self.snapshots) >= num_snapshots)


def nothing() -> tuple[MetricSnapshot, ...]:
    return ()


async def run(
    answer: Callable[[int], Awaitable[None]], num_snapshots: int, timeout_s: float = 0.01
) -> list[Snapshot]:
    sidecar = Sidecar(answer)
    reporter = Reporter(nothing, SOURCE, sidecar.send, period_s=0.001, timeout_s=timeout_s)
    reporter.start()
    await sidecar.wait_for(num_snapshots)
    await reporter.stop()
    await reporter.stop()
    return sidecar.snapshots


async def well(_: int) -> None:
    pass


async def test_pushes_again_and_again_and_a_last_time() -> None:
    snapshots = await run(well, 3, timeout_s=20)
    assert [s.sequence for s in snapshots] == list(range(1, len(snapshots) + 1))
    assert [s.is_final for s in snapshots] == [False] * (len(snapshots) - 1) + [True]


@pytest.mark.parametrize("failure", [ConnectionError("first\nsecond"), RuntimeError(), asyncio.CancelledError()])
async def test_a_lost_sidecar_is_one_line_and_a_found_one_too(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_thrice(num_calls: int) -> None:
        if num_calls <= 3:
            raise failure

    caplog.set_level(logging.INFO, "serve_app")
    logging.getLogger("serve_app").propagate = True
    snapshots = await run(fail_thrice, 6, timeout_s=20)
    assert len(snapshots) >= 7
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2, messages
    assert messages[0].startswith("metrics sidecar lost")
    assert "second" not in messages[0]
    assert messages[1] == "metrics sidecar found again"


async def test_a_slow_sidecar_has_one_push_at_a_time() -> None:
    running = most = 0

    async def hang(_: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(100)
        finally:
            running -= 1

    assert len(await run(hang, 3)) >= 3
    assert most == 1
    await asyncio.sleep(0)  # the final push was cancelled, not waited for
    assert running == 0


async def test_a_push_that_refuses_to_be_cancelled_blocks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    released = asyncio.Event()

    async def refuse(_: int) -> None:
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue
        raise ConnectionError("nobody waits for this any more")

    snapshots = await run(refuse, 1)
    released.set()
    await asyncio.sleep(0.01)
    gc.collect()
    assert len(snapshots) == 1
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_a_registry_that_fails_stops_nothing() -> None:
    metrics, sidecar = Metrics(CollectorRegistry(), ["demo"]), Sidecar(well)
    num_reads = 0

    def fail_once() -> int:
        nonlocal num_reads
        num_reads += 1
        return 5 // (num_reads - 1)

    metrics.watch_queue("demo", fail_once)
    reporter = Reporter(metrics.read, SOURCE, sidecar.send, period_s=0.001)
    reporter.start()
    await sidecar.wait_for(1)
    await reporter.stop()
    assert sidecar.snapshots[0].metrics[-1].series[0].values == (5,)


async def test_stopping_lets_a_push_under_way_end() -> None:
    async def take_a_moment(_: int) -> None:
        await asyncio.sleep(0.002)

    assert [s.is_final for s in await run(take_a_moment, 1, timeout_s=20)] == [False, True]


async def test_a_reporter_that_never_started_stops() -> None:
    await Reporter(nothing, SOURCE, well).stop()  # type: ignore[arg-type]  # never called


def test_a_snapshot_has_every_series_and_is_small() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry, ["demo"])
    with metrics.generation("demo") as generation:
        for _ in range(1000):
            generation.chunk(Chunk("a", 1, 5))
    Gauge("engine_load", "Not our own.", ["kind"], registry=registry).labels("a").set(1.5)
    snapshot = Snapshot(SOURCE, 1, 0.0, metrics.read())
    values = {
        (metric.name, *(label for pair in series.labels for label in pair)): series.values
        for metric in snapshot.metrics
        for series in metric.series
    }
    inter_token = values.pop(("serve_app_inter_token_seconds", "model", "demo"))
    assert (len(inter_token), inter_token[-2]) == (len(BOUND_LABELS) + 1, 999)
    assert values == {
        ("serve_app_tokens", "model", "demo", "kind", "prompt"): (5,),
        ("serve_app_tokens", "model", "demo", "kind", "generated"): (1000,),
        ("engine_load", "kind", "a"): (1.5,),
    }
    data = pickle.dumps(snapshot)
    assert pickle.loads(data) == snapshot
    assert len(data) < 1500

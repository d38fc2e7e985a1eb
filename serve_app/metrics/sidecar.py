"""One process that hears from all others and answers for them, in Prometheus metrics and in a summary.

Takes snapshots, whoever brings them. A process that is silent, or has said goodbye, leaves the metrics; what it
counted stays in the summary. A new sidecar knows all totals again after each process's next push.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from prometheus_client.metrics_core import Metric

from serve_app.config.applications import MetricsConfig
from serve_app.errors import ReplicaDied
from serve_app.metrics import specs
from serve_app.metrics.exposition import Exposition, metric_of
from serve_app.metrics.lost import LostRequests
from serve_app.metrics.snapshot import MetricSnapshot, Snapshot, SourceRole, Waiting, values_by_model
from serve_app.metrics.summary import CountKey, Recent, Tally, Values, counts_of, increments, summarize

# A full vLLM registry is about 1,500 samples; far more means that something is a label that shouldn't be one.
MAX_SAMPLES = 50_000
MAX_SOURCES = 2_000
MAX_MODELS = 1_000
# Counts of silent processes, about 2 kB each, are kept to know one that comes back.
MAX_SILENT_SOURCES = 1_000
_PUSH_PERIOD_S = 1.0
_DEAF_AFTER_S = 3 * _PUSH_PERIOD_S  # after a longer gap between two looks, this process itself had no processor
_DEAD = "dead"  # the label `replica` of what died with its process


@dataclass(slots=True)
class _Process:
    """What is known about one process."""

    snapshot: Snapshot  # the last
    heard_at: float
    counts: dict[CountKey, Values]
    lost: Mapping[str, float] = field(default_factory=dict)  # requests that died with it, by model

    @property
    def exported(self) -> tuple[MetricSnapshot, ...]:
        """A process that said goodbye keeps its counters until it is stale, so that they are scraped."""
        metrics = self.snapshot.metrics
        return tuple(metric for metric in metrics if not (self.snapshot.is_final and metric.type == "gauge"))


class Sidecar:
    """Everything the processes have told. Not thread-safe: called on one event loop.

    `clock` gives seconds from any fixed point, `wall_clock` seconds since 1970.
    """

    def __init__(
        self,
        config: MetricsConfig,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._clock = clock
        self.started_at = wall_clock()
        # Both in the order in which the processes were last heard.
        self._live: dict[tuple[str, str], _Process] = {}
        self._silent: dict[tuple[str, str], _Process] = {}
        self._waiting: dict[tuple[str, str], dict[str, Waiting]] = {}  # by model, of each live ingress
        self._ever = Tally()
        self._recent = Recent()
        self._lost = LostRequests()
        self._refused = dict.fromkeys(("too_many_samples", "too_many_sources", "too_many_models"), 0)
        self._looked_at: float | None = None  # None: nobody looks regularly, and no gap says anything

    def record(self, snapshot: Snapshot) -> bool:
        """Take in a snapshot; False where it is refused, or older than what is known."""
        self._retire_silent()
        source = snapshot.source
        key = (source.application, source.replica)
        process = self._live.get(key) or self._silent.get(key)
        if process and _order(snapshot) <= _order(process.snapshot):
            return False
        counts = counts_of(snapshot)
        refusal = self._refusal(snapshot, counts, key in self._live)
        if refusal:
            self._refused[refusal] += 1
            return False
        if process and process.snapshot.source.started_at != source.started_at:
            process = None  # another one, under the same name
        self._count(counts, process, snapshot)
        if process:
            self._lost.give_back(process.lost)
        self._lost.expect(_in_flight(snapshot))
        if source.role == "ingress":
            self._waiting[key] = {} if snapshot.is_final else _waiting_by_model(snapshot)
        self._live.pop(key, None)
        self._silent.pop(key, None)
        self._live[key] = _Process(snapshot, self._clock(), counts)
        return True

    async def watch(self) -> None:
        """For ever: look for silence so often that a longer gap tells that this process couldn't listen."""
        self._looked_at = self._clock()
        while True:
            self._retire_silent()
            await asyncio.sleep(_PUSH_PERIOD_S)

    def _count(self, counts: dict[CountKey, Values], process: _Process | None, snapshot: Snapshot) -> None:
        """Add what is new to the totals, and to the last minute where it is known to belong there.

        The first snapshot of a process that ran before this sidecar did is history and counts for the totals only.
        Later counts are spread over the time between the two snapshots, because the first may have waited seconds
        for a sidecar to start.
        """
        now = self._clock()
        grown = increments(process.counts if process else {}, counts)
        self._ever.add(grown)
        self._recent.begin(now)
        if process:
            self._recent.add(grown, now - (snapshot.taken_s - process.snapshot.taken_s), now)
        elif snapshot.sequence == 1:
            self._recent.add(grown, now - _PUSH_PERIOD_S, now)

    def _refusal(self, snapshot: Snapshot, counts: dict[CountKey, Values], is_live: bool) -> str | None:
        """Why a snapshot would make this process grow without bound, if it would."""
        if sum(len(series.values) for metric in snapshot.metrics for series in metric.series) > MAX_SAMPLES:
            return "too_many_samples"
        if len(self._live) >= MAX_SOURCES and not is_live:
            return "too_many_sources"
        if len(self._ever.models | {key.model for key in counts}) > MAX_MODELS:
            return "too_many_models"
        return None

    def _retire_silent(self) -> None:
        """Forget the series of processes that are silent, and in the end the oldest of them altogether."""
        self._forgive_own_absence()
        oldest = self._clock() - self._config.stale_after_s
        while self._live:
            key, process = next(iter(self._live.items()))
            if process.heard_at >= oldest:
                break
            if not process.snapshot.is_final:
                self._count_lost(process)
            process.snapshot = replace(process.snapshot, metrics=())
            self._silent[key] = self._live.pop(key)
            self._waiting.pop(key, None)
        while len(self._silent) > MAX_SILENT_SOURCES:
            del self._silent[next(iter(self._silent))]

    def _forgive_own_absence(self) -> None:
        """While this process had no processor, snapshots waited unread: their senders weren't silent."""
        if self._looked_at is None:
            return
        now = self._clock()
        absent_s = now - self._looked_at
        if absent_s > _DEAF_AFTER_S:
            for process in self._live.values():
                process.heard_at += absent_s
        self._looked_at = now

    def waiting(self, application: str) -> Waiting:
        """What waits for the model's turns in all ingresses; what waits in its own lanes their replicas know."""
        self._retire_silent()
        ingresses = [models[application] for models in self._waiting.values() if application in models]
        return Waiting(sum(waiting.requests for waiting in ingresses), sum(waiting.tokens for waiting in ingresses))

    def _count_lost(self, process: _Process) -> None:
        process.lost = _in_flight(process.snapshot)
        grown = self._lost.add(process.lost)
        counts = {
            CountKey(specs.REQUESTS.name, ReplicaDied.code, model): (number,) for model, number in grown.items()
        }
        self._ever.add(counts)
        self._recent.add(counts, self._clock() - _PUSH_PERIOD_S, self._clock())

    def loading(self) -> dict[str, str]:
        """What the replicas that aren't ready yet are doing, by model; of several the last one heard."""
        self._retire_silent()
        snapshots = [process.snapshot for process in self._live.values()]
        return {s.source.application: s.loading for s in snapshots if s.loading and not s.is_final}

    def exposition(self) -> Exposition:
        """The series of all live processes as they are now, safe to render in a thread."""
        self._retire_silent()
        exported = [(process.snapshot.source, process.exported) for process in self._live.values()]
        return Exposition(exported, self._own_metrics())

    def _own_metrics(self) -> list[Metric]:
        sources = [({"role": role}, number) for role, number in self._num_sources().items()]
        refused = [({"reason": reason}, number) for reason, number in self._refused.items()]
        lost = [
            ({"model": model, "outcome": ReplicaDied.code, "replica": _DEAD}, number)
            for model, number in sorted(self._lost.counted.items())
        ]
        return [
            metric_of(specs.SIDECAR_START_TIME, [({}, self.started_at)]),
            metric_of(specs.SOURCES, sources),
            metric_of(specs.REFUSED_SNAPSHOTS, refused),
            metric_of(specs.REQUESTS, lost),
        ]

    def _num_sources(self) -> dict[str, int]:
        snapshots = [process.snapshot for process in self._live.values()]
        roles = [snapshot.source.role for snapshot in snapshots if not snapshot.is_final]
        return {role: roles.count(role) for role in get_args(SourceRole)}

    def summary(self) -> dict[str, Any]:
        """What `/metrics/summary` says: seconds everywhere, null where nothing was observed."""
        self._retire_silent()
        gauges: dict[tuple[str, str], float] = {}
        for process in self._live.values():
            for spec in (specs.IN_FLIGHT, specs.WAITING, specs.QUEUED):
                for model, value in values_by_model(process.exported, spec).items():
                    gauges[spec.name, model] = gauges.get((spec.name, model), 0) + value
        head = {"started_at": self.started_at, "sources": self._num_sources()}
        return head | summarize(self._ever, self._recent, gauges, self._clock())


def _order(snapshot: Snapshot) -> tuple[float, int]:
    """Of two snapshots of one name the newer one has the greater."""
    return snapshot.source.started_at, snapshot.sequence


def _in_flight(snapshot: Snapshot) -> dict[str, float]:
    """How many requests the process was answering, by model."""
    return {
        model: number for model, number in values_by_model(snapshot.metrics, specs.IN_FLIGHT).items() if number > 0
    }


def _waiting_by_model(snapshot: Snapshot) -> dict[str, Waiting]:
    tokens = values_by_model(snapshot.metrics, specs.WAITING_TOKENS)
    requests = values_by_model(snapshot.metrics, specs.WAITING)
    return {model: Waiting(round(number), round(tokens.get(model, 0))) for model, number in requests.items()}

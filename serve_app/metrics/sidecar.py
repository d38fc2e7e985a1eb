"""One process that hears from all others and answers for them: `/metrics` (text), `/metrics/summary` (JSON).

Takes snapshots, whoever brings them. A process that is silent, or has said goodbye, leaves the text; what it
counted stays in the summary. A new sidecar knows all totals again after each process's next push.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.access.keys import Keyring
from serve_app.config.applications import MetricsConfig
from serve_app.errors import Forbidden, ReplicaDied, RequestError, error_json
from serve_app.images.own_site import require_own_site
from serve_app.metrics import specs
from serve_app.metrics.exposition import Exposition
from serve_app.metrics.lost import LostRequests, in_flight
from serve_app.metrics.snapshot import MetricSnapshot, Snapshot, Source, SourceRole, Waiting
from serve_app.metrics.summary import CountKey, Recent, Tally, Values, counts_of, increments, summarize
from serve_app.plain_path import PlainPath

# A full vLLM registry is about 1,500 samples; what is far beyond has a label that shouldn't be one.
MAX_SAMPLES = 50_000
MAX_SOURCES = 2_000
MAX_MODELS = 1_000
# Counts of silent processes are kept so long, about 2 kB each, to know one that comes back.
MAX_SILENT_SOURCES = 1_000
_PUSH_PERIOD_S = 1.0
_DEAF_AFTER_S = 3 * _PUSH_PERIOD_S  # longer between two looks, and this process itself had no processor
_DEAD = "dead"  # the label `replica` of what died with its process


@dataclass(slots=True)
class _Heard:
    """What is known of one process."""

    source: Source
    sequence: int
    taken_s: float
    heard_at: float
    counts: dict[CountKey, Values]
    metrics: tuple[MetricSnapshot, ...]
    is_final: bool
    loading: str | None
    lost: Mapping[str, float] = field(default_factory=dict)  # requests that went with it, by model


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
        self._live: dict[tuple[str, str], _Heard] = {}
        self._silent: dict[tuple[str, str], _Heard] = {}
        self._waiting: dict[tuple[str, str], dict[str, Waiting]] = {}  # by model, of each live ingress
        self._ever = Tally()
        self._recent = Recent()
        self._lost = LostRequests()
        self._refused = dict.fromkeys(("too_many_samples", "too_many_sources", "too_many_models"), 0)
        self._looked_at: float | None = None  # None: nobody looks regularly, and no gap says anything

    def record(self, snapshot: Snapshot) -> bool:
        """Take in what a process tells; False where it is refused, or older than what is known of it."""
        self._retire_silent()
        now = self._clock()
        source = snapshot.source
        key = (source.application, source.replica)
        known = self._live.get(key) or self._silent.get(key)
        if known and (source.started_at, snapshot.sequence) <= (known.source.started_at, known.sequence):
            return False
        counts = counts_of(snapshot)
        refusal = self._refusal(snapshot, counts, key in self._live)
        if refusal:
            self._refused[refusal] += 1
            return False
        if known and known.source.started_at != source.started_at:
            known = None
        self._count(counts, known, snapshot, now)
        if (silent := self._silent.pop(key, None)) is not None and known is not None:
            self._lost.give_back(silent.lost)
        self._lost.expect(in_flight(snapshot.metrics))
        self._live.pop(key, None)
        if source.role == "ingress":
            self._waiting[key] = {} if snapshot.is_final else _waiting_by_model(snapshot)
        self._live[key] = _Heard(
            source,
            snapshot.sequence,
            snapshot.taken_s,
            now,
            counts,
            snapshot.metrics,
            snapshot.is_final,
            snapshot.loading,
        )
        return True

    async def watch(self) -> None:
        """For ever: look for silence so often that a longer gap tells that this process couldn't listen."""
        self._looked_at = self._clock()
        while True:
            self._retire_silent()
            await asyncio.sleep(_PUSH_PERIOD_S)

    def _count(self, counts: dict[CountKey, Values], known: _Heard | None, snapshot: Snapshot, now: float) -> None:
        """Add what is new to the totals, and to the last minute where it is known to belong there.

        The first word of a process that ran before this sidecar did is history: totals only. What came since was
        counted over the time between the two snapshots: the first may have waited seconds for a sidecar that started.
        """
        grown = increments(known.counts if known else {}, counts)
        self._ever.add(grown)
        self._recent.begin(now)
        if known:
            self._recent.add(grown, now - (snapshot.taken_s - known.taken_s), now)
        elif snapshot.sequence == 1:
            self._recent.add(grown, now - _PUSH_PERIOD_S, now)

    def _refusal(self, snapshot: Snapshot, counts: dict[CountKey, Values], is_live: bool) -> str | None:
        """Why a snapshot would make this process grow without bound, if it would."""
        if sum(metric.num_samples for metric in snapshot.metrics) > MAX_SAMPLES:
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
            key, heard = next(iter(self._live.items()))
            if heard.heard_at >= oldest:
                break
            if not heard.is_final:
                self._count_lost(heard)
            heard.metrics = ()
            self._silent[key] = self._live.pop(key)
            self._waiting.pop(key, None)
        while len(self._silent) > MAX_SILENT_SOURCES:
            del self._silent[next(iter(self._silent))]

    def _forgive_own_absence(self) -> None:
        """While this process had no processor, what the others said waited unread: that is no silence of theirs."""
        if self._looked_at is None:
            return
        now = self._clock()
        absent_s = now - self._looked_at
        if absent_s > _DEAF_AFTER_S:
            for heard in self._live.values():
                heard.heard_at += absent_s
        self._looked_at = now

    def waiting(self, application: str) -> Waiting:
        """What waits for the model's turns in all ingresses; what waits in its own lanes their replicas know."""
        self._retire_silent()
        told = [models[application] for models in self._waiting.values() if application in models]
        return Waiting(sum(one.requests for one in told), sum(one.tokens for one in told))

    def _count_lost(self, heard: _Heard) -> None:
        heard.lost = in_flight(heard.metrics)
        grown = self._lost.add(heard.lost)
        counts = {
            CountKey(specs.REQUESTS.name, ReplicaDied.code, model): (number,) for model, number in grown.items()
        }
        self._ever.add(counts)
        self._recent.add(counts, self._clock() - _PUSH_PERIOD_S, self._clock())

    def loading(self) -> dict[str, str]:
        """What the replicas that aren't ready yet are doing, by model; of several the last one heard."""
        self._retire_silent()
        return {
            heard.source.application: heard.loading
            for heard in self._live.values()
            if heard.loading and not heard.is_final
        }

    def exposition(self) -> Exposition:
        """The series of all live processes as they are now, safe to render in a thread."""
        self._retire_silent()
        exported = [(heard.source, _exported(heard)) for heard in self._live.values()]
        return Exposition(exported, self._own_metrics())

    def _own_metrics(self) -> list[Metric]:
        spec = specs.SIDECAR_START_TIME
        start = GaugeMetricFamily(spec.name, spec.help, self.started_at)
        spec = specs.SOURCES
        sources = GaugeMetricFamily(spec.name, spec.help, labels=spec.labels)
        for role, num_sources in self._num_sources().items():
            sources.add_metric([role], num_sources)
        spec = specs.REFUSED_SNAPSHOTS
        refused = CounterMetricFamily(spec.name, spec.help, labels=spec.labels)
        for reason, num_refused in self._refused.items():
            refused.add_metric([reason], num_refused)
        spec = specs.REQUESTS
        lost = CounterMetricFamily(spec.name, spec.help, labels=(*spec.labels, "replica"))
        for model, number in sorted(self._lost.counted.items()):
            lost.add_metric([model, ReplicaDied.code, _DEAD], number)
        return [start, sources, refused, lost]

    def _num_sources(self) -> dict[str, int]:
        roles = [heard.source.role for heard in self._live.values() if not heard.is_final]
        return {role: roles.count(role) for role in get_args(SourceRole)}

    def summary(self) -> dict[str, Any]:
        """What `/metrics/summary` says: seconds everywhere, null where nothing was observed."""
        self._retire_silent()
        gauges: dict[tuple[str, str], float] = {}
        for heard in self._live.values():
            for metric in _exported(heard):
                if metric.name in (specs.IN_FLIGHT.name, specs.WAITING.name, specs.QUEUED.name):
                    for series in metric.series:
                        key = (metric.name, dict(series.labels).get("model", ""))
                        gauges[key] = gauges.get(key, 0) + series.values[0]
        head = {"started_at": self.started_at, "sources": self._num_sources()}
        return head | summarize(self._ever, self._recent, gauges, self._clock())


def _waiting_by_model(snapshot: Snapshot) -> dict[str, Waiting]:
    told: dict[str, dict[str, int]] = {specs.WAITING.name: {}, specs.WAITING_TOKENS.name: {}}
    for metric in snapshot.metrics:
        if metric.name in told:
            told[metric.name] |= {dict(one.labels).get("model", ""): round(one.values[0]) for one in metric.series}
    requests, tokens = told.values()
    return {model: Waiting(number, tokens.get(model, 0)) for model, number in requests.items()}


def _exported(heard: _Heard) -> tuple[MetricSnapshot, ...]:
    """A process that said goodbye keeps its counters until it is stale, so that they are scraped."""
    if heard.is_final:
        return tuple(metric for metric in heard.metrics if metric.type != "gauge")
    return heard.metrics


def create_metrics_app(sidecar: Sidecar, keys: Keyring, allowed_hosts: Sequence[str] = ()) -> Starlette:
    """The sidecar's HTTP side: `/` is Prometheus or OpenMetrics text as `Accept` asks, `/summary` JSON.

    Where there are `keys`, an administrator's is needed.
    """

    async def metrics(request: Request) -> Response:
        render, content_type = choose_encoder(request.headers.get("accept", ""))
        text = await asyncio.to_thread(render, sidecar.exposition())
        return Response(text, headers={"content-type": content_type})

    async def summary(_: Request) -> Response:
        return JSONResponse(sidecar.summary(), headers={"cache-control": "no-store"})

    routes = [Route("/", metrics), Route("/summary", summary)]
    return Starlette(
        routes=routes,
        middleware=[Middleware(PlainPath), Middleware(_AdminsOnly, keys=keys, allowed_hosts=allowed_hosts)],
    )


class _AdminsOnly:
    """Lets those in who have an administrator's key, and everybody where the service has no keys."""

    def __init__(self, app: ASGIApp, keys: Keyring, allowed_hosts: Sequence[str]) -> None:
        self._app = app
        self._keys = keys
        self._allowed_hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                key = self._keys.key_of(Headers(scope=scope).get("authorization"))
                if key is None:
                    require_own_site(scope["headers"], self._allowed_hosts, ())
                elif not key.is_admin:
                    raise Forbidden("the numbers are for administrators: use a key that has admin: true")
            except RequestError as error:
                await JSONResponse(error_json(error), error.status)(scope, receive, send)
                return
        await self._app(scope, receive, send)

"""What one process counts: the metrics of the catalog, and the `with` blocks that count them right.

The HTTP side uses `request`, `image` and `waiting`, a replica `generation` and `watch_queue`. Knows nothing about
sidecars: `read` says what is sent to one.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import Metric

from serve_app.errors import InternalError, ServeAppError
from serve_app.messages import Chunk
from serve_app.metrics import specs
from serve_app.metrics.histogram import DurationHistogram
from serve_app.metrics.snapshot import MetricSnapshot, Series
from serve_app.metrics.specs import CLEAN, CLIENT_LEFT, NO_MODEL, OK, OUTCOMES, MetricSpec


class Metrics:
    """The metrics of one process: durations of its own kind, counters and gauges in `registry`, which may have more.

    `models` are the names that may become a label; any other, which a client may have made up, is counted
    as model `none`. Assign a new set when the configured models change.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        models: Iterable[str] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.models = frozenset(models)
        self.clock = clock
        self._registry = registry
        self.requests = _counter(specs.REQUESTS, registry)
        self.in_flight = _gauge(specs.IN_FLIGHT, registry)
        self.images = _counter(specs.IMAGES, registry)
        self.caption_guard = _counter(specs.CAPTION_GUARD, registry)
        self.ignored_fields = _counter(specs.IGNORED_FIELDS, registry)
        self.tokens = _counter(specs.TOKENS, registry)
        self.queued = _gauge(specs.QUEUED, registry)
        self.kv_cache_use = _gauge(specs.KV_CACHE_USE, registry)
        self.num_waiting = _gauge(specs.WAITING, registry)
        self.waiting_tokens = _gauge(specs.WAITING_TOKENS, registry)
        self._histograms: list[DurationHistogram] = []
        self.request_seconds = self._histogram(specs.REQUEST_SECONDS)
        self.time_to_first_token = self._histogram(specs.TIME_TO_FIRST_TOKEN)
        self.image_seconds = self._histogram(specs.IMAGE_SECONDS)
        self.inter_token = self._histogram(specs.INTER_TOKEN)
        self.queue_seconds = self._histogram(specs.QUEUE_SECONDS)
        self.turn_seconds = self._histogram(specs.TURN_SECONDS)

    def _histogram(self, spec: MetricSpec) -> DurationHistogram:
        self._histograms.append(DurationHistogram(spec))
        return self._histograms[-1]

    def read(self) -> tuple[MetricSnapshot, ...]:
        """Every metric that has a series, as it is sent to the sidecar."""
        durations = [histogram.read() for histogram in self._histograms]
        metrics = (*durations, *map(_read, self._registry.collect()))
        return tuple(metric for metric in metrics if metric.series)

    def label(self, model: str) -> str:
        """The label value for a name that a client sent: itself if configured, `none` otherwise."""
        return model if model in self.models else NO_MODEL

    def request(self, model: str = "") -> "RequestTracker":
        """Track one HTTP request: `with metrics.request() as tracker:`, from arrival to the last byte."""
        return RequestTracker(self, self.label(model))

    def image(self, model: str = "") -> "ImageTracker":
        """Track one image from its URL or bytes to pixels: `with metrics.image(model):`."""
        return ImageTracker(self, self.label(model))

    def caption_checked(self, model: str, findings: Iterable[str]) -> None:
        """Count a caption that the guard looked at, once for each of its findings."""
        for finding in tuple(findings) or (CLEAN,):
            self.caption_guard.labels(self.label(model), finding).inc()

    def generation(self, model: str) -> "GenerationTracker":
        """Track one request inside a replica: `with metrics.generation(model) as generation:`."""
        return GenerationTracker(self, self.label(model))

    def had_its_turn(self, queue: str) -> None:
        """Count a request for which there was room when it came."""
        self.turn_seconds.of(self.label(queue)).observe(0.0)

    @contextmanager
    def waiting(self, queue: str, num_tokens: int) -> Iterator[None]:
        """Track a request that waits for its turn: `with metrics.waiting(model, num_tokens):`, however that ends."""
        label, started_at = self.label(queue), self.clock()
        num_waiting, waiting_tokens = self.num_waiting.labels(label), self.waiting_tokens.labels(label)
        num_waiting.inc()
        waiting_tokens.inc(num_tokens)
        try:
            yield
        finally:
            num_waiting.dec()
            waiting_tokens.dec(num_tokens)
            self.turn_seconds.of(label).observe(self.clock() - started_at)

    def watch_queue(self, model: str, num_waiting: Callable[[], int]) -> None:
        """Export what `num_waiting()` returns, read at each snapshot, as the model's queued requests."""
        self.queued.labels(self.label(model)).set_function(num_waiting)

    def watch_kv_cache(self, model: str, use: Callable[[], float | None]) -> None:
        """Export what `use()` returns, a share, read at each snapshot. An engine that has none now never will."""
        if use() is not None:
            self.kv_cache_use.labels(self.label(model)).set_function(lambda: use() or 0.0)


class RequestTracker:
    """One request, seen from the HTTP side. In flight inside the `with`, counted by outcome at its end.

    An exception that leaves the block is the outcome: a `ServeAppError` its code, a cancellation or a closed
    generator `client_left`, anything else `internal_error`. None is `ok`. An outcome told by hand stands.
    """

    __slots__ = ("_has_first_token", "_is_entered", "_metrics", "_model", "_outcome", "_started_at")

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._outcome: str | None = None
        self._has_first_token = False
        self._is_entered = False
        self._started_at = metrics.clock()

    def __enter__(self) -> Self:
        self._is_entered = True
        self._started_at = self._metrics.clock()
        self._metrics.in_flight.labels(self._model).inc()
        return self

    def set_model(self, model: str) -> None:
        """Count this request under the model it asks for, once that has been read from its body."""
        before, self._model = self._model, self._metrics.label(model)
        if self._is_entered:
            self._metrics.in_flight.labels(before).dec()
            self._metrics.in_flight.labels(self._model).inc()

    def first_token(self) -> None:
        """The first piece of the answer is there; later calls count nothing, nor does one outside the block."""
        if self._is_entered and not self._has_first_token:
            self._has_first_token = True
            seconds = self._metrics.clock() - self._started_at
            self._metrics.time_to_first_token.of(self._model).observe(seconds)

    def ignored_fields(self, num_fields: int) -> None:
        """So many unknown fields of it were read over."""
        self._metrics.ignored_fields.labels(self._model).inc(num_fields)

    def outcome(self, outcome: str) -> None:
        """Tell the outcome of a request whose error was answered inside the block. The first call stands."""
        assert outcome in OUTCOMES, f"outcome '{outcome}' is none of {sorted(OUTCOMES)}"
        self._outcome = self._outcome or outcome

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        self._metrics.in_flight.labels(self._model).dec()
        self._metrics.request_seconds.of(self._model).observe(self._metrics.clock() - self._started_at)
        self._metrics.requests.labels(self._model, self._outcome or outcome_of(error)).inc()


class ImageTracker:
    """One image: its seconds, and its outcome as in `RequestTracker`."""

    __slots__ = ("_metrics", "_model", "_started_at")

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model

    def __enter__(self) -> Self:
        self._started_at = self._metrics.clock()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        self._metrics.image_seconds.of(self._model).observe(self._metrics.clock() - self._started_at)
        self._metrics.images.labels(self._model, outcome_of(error)).inc()


class GenerationTracker:
    """One request inside a replica: its queue time, its tokens, the time between them.

    Tokens are wasted when an exception (a cancellation and a closed generator too) leaves the block before
    the last chunk, the one with a finish reason, was recorded.
    """

    __slots__ = ("_generated", "_has_started", "_inter_token", "_is_complete", "_last_token_at", "_metrics", "_model",
                 "_num_tokens", "_started_at")  # fmt: skip

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._inter_token = metrics.inter_token.of(model)
        self._generated = metrics.tokens.labels(model, "generated")
        self._num_tokens = -1
        self._is_complete = False
        self._has_started = False

    def __enter__(self) -> Self:
        self._started_at = self._last_token_at = self._metrics.clock()
        return self

    @property
    def num_tokens(self) -> int:
        """Generated until now."""
        return max(0, self._num_tokens)

    def started(self, queue_s: float | None = None) -> None:
        """The engine works on the request: since now, or since `queue_s` seconds after its arrival.

        The first call counts.
        """
        if self._has_started:
            return
        self._has_started = True
        seconds = self._metrics.clock() - self._started_at if queue_s is None else queue_s
        self._metrics.queue_seconds.of(self._model).observe(seconds)

    def chunk(self, chunk: Chunk) -> None:
        """Count a chunk, before it is handed on. A chunk of n tokens after t seconds is n times t/n.

        The first tokens start the clock: their wait is the time to first token. Counts the prompt, too.
        """
        now = self._metrics.clock()
        num_tokens = chunk.num_tokens
        if self._num_tokens < 0:
            self._num_tokens = 0
            self._metrics.tokens.labels(self._model, "prompt").inc(chunk.num_prompt_tokens)
        if num_tokens:
            if self._num_tokens:
                self._inter_token.observe((now - self._last_token_at) / num_tokens, num_tokens)
            self._num_tokens += num_tokens
            self._generated.inc(num_tokens)
            self._last_token_at = now
        if chunk.finish_reason is not None:
            self._is_complete = True

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        if error is not None and not self._is_complete and self._num_tokens > 0:
            self._metrics.tokens.labels(self._model, "wasted").inc(self._num_tokens)


def outcome_of(error: BaseException | None) -> str:
    """The label of what ended so; None is success, a cancellation that nobody wants it any more."""
    if error is None:
        return OK
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return CLIENT_LEFT
    code = getattr(error, "code", None) if isinstance(error, ServeAppError) else None
    return code if code in OUTCOMES else InternalError.code


def _read(metric: Metric) -> MetricSnapshot:
    """Without the `_created` samples: the sidecar tells a restart by the process's start time."""
    samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
    series = tuple(Series(tuple(sample.labels.items()), (_compact(sample.value),)) for sample in samples)
    return MetricSnapshot(metric.name, metric.type, metric.documentation, series)


def _compact(value: float) -> float:
    """A whole number as an int, which pickles in 2 to 5 bytes; a float takes 9."""
    return int(value) if float(value).is_integer() else value


def _counter(spec: MetricSpec, registry: CollectorRegistry) -> Counter:
    return Counter(spec.name, spec.help, spec.labels, registry=registry)


def _gauge(spec: MetricSpec, registry: CollectorRegistry) -> Gauge:
    return Gauge(spec.name, spec.help, spec.labels, registry=registry)

"""A histogram of seconds whose `observe` is cheap enough for every token, and percentiles from its buckets.

`prometheus_client`'s histogram walks its buckets one by one and takes two locks; this one bisects, takes one,
and counts n equal observations at once. It is a collector like any other, registered in a registry.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from threading import Lock

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import CollectorRegistry
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

from serve_app.metrics.specs import MetricSpec

BUCKET_RATIO = 1.3


def _label(bound: float) -> str:
    text: str = floatToGoString(bound)  # type: ignore[no-untyped-call]  # prometheus_client's
    return text


# 0.5 ms to 324 s: below is noise of the event loop, above is every timeout of the service.
BOUNDS: tuple[float, ...] = tuple(float(f"{0.0005 * BUCKET_RATIO**i:.3g}") for i in range(52))
BOUND_LABELS: tuple[str, ...] = (*(_label(bound) for bound in BOUNDS), "+Inf")


class Durations:
    """One model's durations in seconds, counted by bucket."""

    __slots__ = ("_counts", "_lock", "_sum")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS) + 1)
        self._sum = 0.0
        self._lock = Lock()

    def observe(self, seconds: float, count: int = 1) -> None:
        """Count `count` durations of `seconds` each."""
        bucket = bisect_left(BOUNDS, seconds)
        with self._lock:
            self._counts[bucket] += count
            self._sum += seconds * count

    def read(self) -> tuple[list[int], float]:
        """Observations per bucket (the last one is without upper bound), and the sum of seconds."""
        with self._lock:
            return self._counts.copy(), self._sum


class DurationHistogram:
    """A collector of `Durations` by model, in the shape of a Prometheus histogram."""

    def __init__(self, spec: MetricSpec, registry: CollectorRegistry) -> None:
        assert spec.labels == ("model",), f"{spec.name} has labels {spec.labels}, not model alone"
        self._spec = spec
        self._by_model: dict[str, Durations] = {}
        registry.register(self)

    def of(self, model: str) -> Durations:
        """The model's durations: keep the result where it is used often."""
        durations = self._by_model.get(model)
        return durations if durations is not None else self._by_model.setdefault(model, Durations())

    def describe(self) -> Iterable[Metric]:
        """The metric without its samples: the registry's guard against two of one name."""
        return [DurationMetric(self._spec, ())]

    def collect(self) -> Iterable[Metric]:
        """The metric with the counts of every model seen so far."""
        return [DurationMetric(self._spec, [(m, d.read()) for m, d in list(self._by_model.items())])]


class DurationMetric(Metric):
    """A histogram's counts at one moment: `rows` of model, cumulative counts and sum of seconds.

    `samples` are made when read: the text format wants them, a snapshot takes the rows, fifty times cheaper.
    """

    def __init__(self, spec: MetricSpec, rows: Iterable[tuple[str, tuple[list[int], float]]]) -> None:
        super().__init__(spec.name, spec.help, "histogram")
        del self.samples  # the cached property answers instead of the attribute
        self.rows = [(model, tuple(accumulate(counts)), total) for model, (counts, total) in rows]

    @cached_property
    def samples(self) -> list[Sample]:  # type: ignore[override]  # a list there; made late here
        made: list[Sample] = []
        for model, cumulative, total in self.rows:
            for label, count in zip(BOUND_LABELS, cumulative, strict=True):
                made.append(Sample(self.name + "_bucket", {"model": model, "le": label}, count))
            made.append(Sample(self.name + "_count", {"model": model}, cumulative[-1]))
            made.append(Sample(self.name + "_sum", {"model": model}, total))
        return made


def percentile(cumulative: Sequence[float], share: float) -> float | None:
    """The seconds that `share` (0 to 1) of the observations don't exceed; None without observations.

    `cumulative` counts observations up to each bound of `BOUNDS`, then all. Linear inside a bucket, as
    Prometheus's `histogram_quantile`; beyond the last bound the answer is that bound.
    """
    if not cumulative or cumulative[-1] <= 0:
        return None
    rank = share * cumulative[-1]
    bucket = bisect_left(cumulative, rank)
    if bucket >= len(BOUNDS):
        return BOUNDS[-1]
    below = cumulative[bucket - 1] if bucket else 0.0
    inside = cumulative[bucket] - below
    lower = BOUNDS[bucket - 1] if bucket else 0.0
    return lower + (BOUNDS[bucket] - lower) * ((rank - below) / inside if inside else 1.0)

"""A histogram of seconds whose `observe` is cheap enough for every token, and percentiles from its buckets.

`prometheus_client`'s histogram walks its buckets one by one and takes two locks. This one bisects, takes one lock
and counts n equal observations at once. Reading it is one tuple of numbers a model.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from threading import Lock

from prometheus_client.utils import floatToGoString

from serve_app.metrics.snapshot import MetricSnapshot, Series
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
        self._counts = [0] * len(BOUND_LABELS)
        self._sum = 0.0
        self._lock = Lock()

    def observe(self, seconds: float, count: int = 1) -> None:
        """Count `count` durations of `seconds` each."""
        bucket = bisect_left(BOUNDS, seconds)
        with self._lock:
            self._counts[bucket] += count
            self._sum += seconds * count

    def read(self) -> tuple[float, ...]:
        """How many durations are at most as long as each bound, how many there are, and their sum in seconds."""
        with self._lock:
            counts, total_s = self._counts.copy(), self._sum
        return (*accumulate(counts), total_s)


class DurationHistogram:
    """`Durations` by model."""

    def __init__(self, spec: MetricSpec) -> None:
        assert spec.labels == ("model",), f"{spec.name} has labels {spec.labels}, not model alone"
        self._spec = spec
        self._by_model: dict[str, Durations] = {}

    def of(self, model: str) -> Durations:
        """The model's durations: keep the result where it is used often."""
        durations = self._by_model.get(model)
        return durations if durations is not None else self._by_model.setdefault(model, Durations())

    def read(self) -> MetricSnapshot:
        """The counts of every model seen so far."""
        by_model = self._by_model.copy()
        series = tuple(Series((("model", model),), durations.read()) for model, durations in by_model.items())
        return MetricSnapshot(self._spec.name, "histogram", self._spec.help, series)


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

"""What a process tells the sidecar: all series of a registry at one moment, and who they come from.

Compact for the wire: the series of one metric share the names of their parts, so that a histogram is one
tuple of numbers. `_created` samples are left out; the sidecar tells a restart by the process's start time.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from serve_app.metrics.histogram import BOUND_LABELS, DurationMetric

SourceRole = Literal["ingress", "model"]
Labels = tuple[tuple[str, str], ...]
Part = tuple[str, str | None]
DURATION_PARTS: tuple[Part, ...] = (
    *((sys.intern("_bucket"), label) for label in BOUND_LABELS),
    ("_count", None),
    ("_sum", None),
)


@dataclass(frozen=True, slots=True)
class Source:
    """A reporting process. `replica` is the Ray Serve replica id, `started_at` seconds since 1970.

    A model's application is named like the model. The same replica with a later start is a new process.
    """

    role: SourceRole
    application: str
    replica: str
    process: str
    started_at: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits for one model's turns in all ingresses together: requests, and about the tokens of their prompts."""

    requests: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Series:
    """One labelled series: a number for each of its metric's parts."""

    labels: Labels
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class MetricSnapshot:
    """One metric. A part is a sample name's suffix with the `le` of a bucket, or None."""

    name: str
    type: str
    help: str
    parts: tuple[Part, ...]
    series: tuple[Series, ...]

    @property
    def num_samples(self) -> int:
        return len(self.parts) * len(self.series)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A registry at one moment. `sequence` counts a process's snapshots from 1; a final one says goodbye.

    `taken_s` is the process's own steady clock: only the time between two snapshots of one process means anything.
    `loading` is what a replica that isn't ready yet is doing.
    """

    source: Source
    sequence: int
    taken_s: float
    metrics: tuple[MetricSnapshot, ...]
    is_final: bool = False
    loading: str | None = None


def take_snapshot(
    registry: Collector, source: Source, sequence: int, taken_s: float, is_final: bool = False
) -> Snapshot:
    """Read all series of `registry`."""
    shared: dict[tuple[Part, ...], tuple[Part, ...]] = {}
    metrics = tuple(taken for metric in registry.collect() for taken in _metric_snapshots(metric, shared))
    return Snapshot(source, sequence, taken_s, metrics, is_final)


def _metric_snapshots(metric: Metric, shared: dict[tuple[Part, ...], tuple[Part, ...]]) -> Iterator[MetricSnapshot]:
    """One for each set of parts that the metric's series have: as a rule one, none for an unused metric.

    Equal parts are one object in `shared`, which pickle then writes once.
    """
    if isinstance(metric, DurationMetric):
        rows = ((model, (*cumulative, cumulative[-1], total)) for model, cumulative, total in metric.rows)
        series = tuple(Series((("model", model),), values) for model, values in rows)
        if series:
            yield MetricSnapshot(metric.name, metric.type, metric.documentation, DURATION_PARTS, series)
        return
    by_labels: dict[Labels, list[tuple[Part, float]]] = {}
    for sample in metric.samples:
        suffix = sys.intern(sample.name[len(metric.name) :])
        if suffix != "_created":
            labels, bound = _split_bound(tuple(sample.labels.items()))
            value = sample.value
            # A whole number pickles in 2 to 5 bytes as an int, in 9 as a float.
            whole = int(value) if isfinite(value) else value
            by_labels.setdefault(labels, []).append(((suffix, bound), whole if whole == value else value))
    by_parts: dict[tuple[Part, ...], list[Series]] = {}
    for labels, samples in by_labels.items():
        parts, values = zip(*samples, strict=True)
        by_parts.setdefault(parts, []).append(Series(labels, values))
    for parts, listed in by_parts.items():
        parts = shared.setdefault(parts, parts)
        yield MetricSnapshot(metric.name, metric.type, metric.documentation, parts, tuple(listed))


def _split_bound(labels: Labels) -> tuple[Labels, str | None]:
    """A bucket's `le` apart from the other labels; `prometheus_client` puts it last."""
    if labels and labels[-1][0] == "le":
        return labels[:-1], labels[-1][1]
    return labels, None

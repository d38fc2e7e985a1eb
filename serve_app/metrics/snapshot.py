"""What a process sends to the sidecar: all its series at one moment, and who they come from.

Compact on the wire: a histogram's series is one tuple of numbers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from serve_app.metrics.specs import MetricSpec

SourceRole = Literal["ingress", "model"]


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
    """One labelled series. `values` is a counter's or gauge's one value, or what `Durations.read` returns."""

    labels: tuple[tuple[str, str], ...]
    values: tuple[float, ...]

    @property
    def model(self) -> str:
        return dict(self.labels).get("model", "")


@dataclass(frozen=True, slots=True)
class MetricSnapshot:
    """One metric: a counter, a gauge or a histogram. A counter's name has no `_total`."""

    name: str
    type: str
    help: str
    series: tuple[Series, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A process's metrics at one moment. `sequence` counts its snapshots from 1; a final one says goodbye.

    `taken_s` is the process's own steady clock: only the time between two snapshots of one process means anything.
    `loading` is what a replica that isn't ready yet is doing.
    """

    source: Source
    sequence: int
    taken_s: float
    metrics: tuple[MetricSnapshot, ...]
    is_final: bool = False
    loading: str | None = None


def values_by_model(metrics: Iterable[MetricSnapshot], spec: MetricSpec) -> dict[str, float]:
    """A gauge's value for each model."""
    return {
        series.model: series.values[0] for metric in metrics if metric.name == spec.name for series in metric.series
    }

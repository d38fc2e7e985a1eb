"""The arithmetic behind `/metrics/summary`: counts of all processes, ever and lately, and what they come to.

Knows counts by model, not who sent them. Everything is a sum of increments, so nothing ever goes backwards.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import floor, inf
from typing import Any, NamedTuple

from serve_app.metrics import specs
from serve_app.metrics.histogram import BOUND_LABELS, percentile
from serve_app.metrics.snapshot import Snapshot
from serve_app.metrics.specs import CLIENT_LEFT, OK, MetricSpec

RATE_WINDOWS_S = (10, 60)
PERCENTILE_WINDOW_S = 60
# A rate's window ends this long before now: processes report every second, so all have reported by then.
RATE_LAG_S = 1.0
PERCENTS = (50, 90, 99)
_SLOTS_KEPT = max(*RATE_WINDOWS_S, PERCENTILE_WINDOW_S) + 2

_COUNTED = {spec.name.removesuffix("_total"): spec for spec in (
    specs.REQUESTS, specs.TOKENS, specs.TIME_TO_FIRST_TOKEN, specs.TURN_SECONDS, specs.INTER_TOKEN,
)}  # fmt: skip
_PERCENTILES = {
    "time_to_first_token_seconds": specs.TIME_TO_FIRST_TOKEN,
    "turn_seconds": specs.TURN_SECONDS,
    "inter_token_seconds": specs.INTER_TOKEN,
}


class CountKey(NamedTuple):
    """What is counted: `label` is the token kind or the outcome, "" for a histogram."""

    metric: str
    label: str
    model: str


Values = tuple[float, ...]
Counts = Mapping[CountKey, Values]


def counts_of(snapshot: Snapshot) -> dict[CountKey, Values]:
    """The counters and histograms of a snapshot that the summary shows, since its process started."""
    counts: dict[CountKey, Values] = {}
    for metric in snapshot.metrics:
        spec = _COUNTED.get(metric.name)
        if spec is None:
            continue
        for series in metric.series:
            label = dict(series.labels).get(spec.labels[-1], "") if spec.type == "counter" else ""
            counts[CountKey(spec.name, label, series.model)] = series.values
    return counts


def increments(before: Counts, now: Counts) -> dict[CountKey, Values]:
    """What was counted between two snapshots of one process. A count that fell began again at zero."""
    grown: dict[CountKey, Values] = {}
    for key, values in now.items():
        old = before.get(key)
        if old is None:
            grown[key] = values
        elif old != values:
            steps = tuple(new - was for new, was in zip(values, old, strict=True))
            grown[key] = values if min(steps) < 0 else steps
    return grown


class Tally:
    """Sums of counts, by key."""

    def __init__(self) -> None:
        self.sums: dict[CountKey, list[float]] = {}
        self.models: set[str] = set()

    def add(self, counts: Mapping[CountKey, Sequence[float]], share: float = 1) -> None:
        """Add `share` of every count."""
        for key, values in counts.items():
            self.models.add(key.model)
            sums = self.sums.setdefault(key, [0] * len(values))
            for index, value in enumerate(values):
                if value:
                    sums[index] += value * share

    def labels(self, spec: MetricSpec, model: str | None) -> dict[str, int]:
        """A counter by its own label; None sums all models."""
        counts: dict[str, float] = {}
        for key, (value, *_) in self.sums.items():
            if key.metric == spec.name and model in (None, key.model):
                counts[key.label] = counts.get(key.label, 0) + value
        return {label: round(value) for label, value in sorted(counts.items())}

    def count(self, spec: MetricSpec, label: str, model: str | None) -> float:
        """One counter; None sums all models."""
        return sum(
            values[0]
            for key, values in self.sums.items()
            if key[:2] == (spec.name, label) and model in (None, key.model)
        )

    def percentiles(self, spec: MetricSpec, model: str | None) -> dict[str, float | None]:
        """p50, p90 and p99 of a histogram in seconds; None sums all models."""
        matching = [v for k, v in self.sums.items() if k.metric == spec.name and model in (None, k.model)]
        cumulative = [sum(column) for column in zip(*matching, strict=True)][: len(BOUND_LABELS)]
        return {f"p{percent}": percentile(cumulative, percent / 100) for percent in PERCENTS}


class Recent:
    """Counts of the last minute in slots of one second of the sidecar's clock."""

    def __init__(self) -> None:
        self._slots: dict[int, Tally] = {}
        self._since: float | None = None

    def begin(self, now: float) -> None:
        """The first process was heard: rates count from here. Later calls change nothing."""
        if self._since is None:
            self._since = now

    def add(self, counts: Counts, start: float, end: float) -> None:
        """Spread what was counted between two times evenly over them; what lies before the beginning isn't kept."""
        for second, share in _shares(start, end, self._since or 0.0):
            self._slots.setdefault(second, Tally()).add(counts, share)
        for second in [second for second in self._slots if second < floor(end) - _SLOTS_KEPT]:
            del self._slots[second]

    def between(self, first: int, end: float) -> Tally:
        """Everything counted in the seconds from `first` up to and without `end`."""
        tally = Tally()
        for second, slot in self._slots.items():
            if first <= second < end:
                tally.add(slot.sums)
        return tally

    def rates(self, now: float, window_s: int, model: str | None) -> float | None:
        """Generated tokens per second; None while less than a second was seen.

        The window ends at the last whole second that every process has reported, and a sidecar younger than
        the window divides by the time it has seen.
        """
        end = floor(now - RATE_LAG_S)
        seen_s = min(window_s, end - self._since) if self._since is not None else 0
        if seen_s < 1:
            return None
        return self.between(end - window_s, end).count(specs.TOKENS, "generated", model) / seen_s


def _shares(start: float, end: float, since: float) -> Iterator[tuple[int, float]]:
    """The seconds from start to end that are kept, those after `since`, each with its share of the time."""
    if end <= start:
        yield floor(end), 1.0
        return
    for second in range(max(floor(start), floor(end) - _SLOTS_KEPT), floor(end) + 1):
        overlap_s = min(end, second + 1) - max(start, second, since)
        if overlap_s > 0:
            yield second, overlap_s / (end - start)


def summarize(ever: Tally, recent: Recent, gauges: Mapping[tuple[str, str], float], now: float) -> dict[str, Any]:
    """`models`, a row for each, and `totals`, the same over all. `gauges` are by metric and model."""
    lately = recent.between(floor(now) - PERCENTILE_WINDOW_S, inf)

    def row(model: str | None) -> dict[str, Any]:
        outcomes = ever.labels(specs.REQUESTS, model)
        return {
            "requests": sum(outcomes.values()),
            "clients_left": outcomes.get(CLIENT_LEFT, 0),
            "failures": {code: num for code, num in outcomes.items() if code not in (OK, CLIENT_LEFT)},
            "in_flight": _gauge(gauges, specs.IN_FLIGHT, model),
            "waiting": _gauge(gauges, specs.WAITING, model),
            "queued": _gauge(gauges, specs.QUEUED, model),
            "tokens": {"prompt": 0, "generated": 0, "wasted": 0} | ever.labels(specs.TOKENS, model),
            "tokens_per_second": {f"last_{s}s": recent.rates(now, s, model) for s in RATE_WINDOWS_S},
            **{
                name: {"last_60s": lately.percentiles(spec, model), "ever": ever.percentiles(spec, model)}
                for name, spec in _PERCENTILES.items()
            },
        }

    models = sorted(ever.models | {model for _, model in gauges})
    return {"models": {model: row(model) for model in models}, "totals": row(None)}


def _gauge(gauges: Mapping[tuple[str, str], float], spec: MetricSpec, model: str | None) -> int:
    return round(sum(v for (name, of), v in gauges.items() if name == spec.name and model in (None, of)))

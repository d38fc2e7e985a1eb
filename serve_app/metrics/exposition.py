"""The series of many processes as one set of Prometheus metrics, each named, described and typed once."""

from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import Metric

from serve_app.metrics.snapshot import MetricSnapshot, Series, Source


class Exposition:
    """A collector over snapshots, for `prometheus_client`'s own text formats.

    Adds `replica` to every series, and `model` to those of a model's process that lack it. A series that
    would stand there twice, or whose metric has another type elsewhere, is left out: either breaks a scrape.
    """

    def __init__(self, sources: Sequence[tuple[Source, tuple[MetricSnapshot, ...]]], own: Sequence[Metric]) -> None:
        self._sources = sources
        self._own = own

    def collect(self) -> Iterable[Metric]:
        """The sidecar's own metrics and everybody's, by name."""
        merged = {metric.name: metric for metric in self._own}
        seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
        for source, metrics in self._sources:
            for snapshot in metrics:
                metric = merged.setdefault(snapshot.name, Metric(snapshot.name, snapshot.help, snapshot.type))
                if metric.type != snapshot.type:
                    continue
                for series in snapshot.series:
                    labels = _labels(source, series)
                    key = (metric.name, frozenset(labels.items()))
                    if key not in seen:
                        seen.add(key)
                        _add_series(metric, snapshot, labels, series.values)
        return [merged[name] for name in sorted(merged)]


def _labels(source: Source, series: Series) -> dict[str, str]:
    labels = dict(series.labels)
    if source.role == "model":
        labels.setdefault("model", source.application)
    labels["replica"] = source.replica
    return labels


def _add_series(metric: Metric, snapshot: MetricSnapshot, labels: dict[str, str], values: tuple[float, ...]) -> None:
    for (suffix, bound), value in zip(snapshot.parts, values, strict=True):
        own_labels = labels if bound is None else {**labels, "le": bound}
        metric.add_sample(metric.name + suffix, own_labels, value)

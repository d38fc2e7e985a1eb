"""The series of many processes as one set of Prometheus metrics, each named, described and typed once."""

from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import Metric

from serve_app.metrics.histogram import BOUND_LABELS
from serve_app.metrics.snapshot import MetricSnapshot, Series, Source
from serve_app.metrics.specs import MetricSpec

Labels = dict[str, str]


class Exposition:
    """A collector over snapshots, for `prometheus_client`'s own text formats.

    Adds `replica` to every series, and `model` to those of a model's process that lack it. It leaves out a second
    series of the same name and labels, and a metric that has another type elsewhere: either breaks a scrape.
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
                        _add_series(metric, labels, series.values)
        return [merged[name] for name in sorted(merged)]


def metric_of(spec: MetricSpec, values: Iterable[tuple[Labels, float]]) -> Metric:
    """A counter or gauge with a value for each set of labels."""
    metric = Metric(spec.name.removesuffix("_total"), spec.help, spec.type)
    for labels, value in values:
        metric.add_sample(spec.name, labels, value)
    return metric


def _labels(source: Source, series: Series) -> Labels:
    labels = dict(series.labels)
    if source.role == "model":
        labels.setdefault("model", source.application)
    labels["replica"] = source.replica
    return labels


def _add_series(metric: Metric, labels: Labels, values: tuple[float, ...]) -> None:
    if metric.type != "histogram":
        metric.add_sample(metric.name + ("_total" if metric.type == "counter" else ""), labels, values[0])
        return
    *cumulative, total_s = values
    for bound, count in zip(BOUND_LABELS, cumulative, strict=True):
        metric.add_sample(metric.name + "_bucket", {**labels, "le": bound}, count)
    metric.add_sample(metric.name + "_count", labels, cumulative[-1])
    metric.add_sample(metric.name + "_sum", labels, total_s)

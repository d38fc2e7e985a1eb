"""Requests whose process died: its last word says how many it was answering, and nobody else ever will.

Counted once the process has been silent for so long that it is gone, by its last word, which is a second old at most.
"""

from collections.abc import Mapping, Sequence

from serve_app.metrics import specs
from serve_app.metrics.snapshot import MetricSnapshot

Lost = Mapping[str, float]


class LostRequests:
    """By model. `counted` never falls: what a process that speaks again gives back is taken off what is lost next."""

    def __init__(self) -> None:
        self.counted: dict[str, float] = {}
        self._lost: dict[str, float] = {}

    def expect(self, in_flight: Lost) -> None:
        """Count from 0 for these models: no rate would see a series that begins with its first loss."""
        for model in in_flight:
            self.counted.setdefault(model, 0.0)

    def add(self, in_flight: Lost) -> dict[str, float]:
        """Of a process that fell silent. Returns by how much `counted` grew."""
        return {model: grown for model, number in in_flight.items() if (grown := self._add(model, number))}

    def give_back(self, in_flight: Lost) -> None:
        """Of a process that was silent and speaks again."""
        for model, number in in_flight.items():
            self._lost[model] -= number

    def _add(self, model: str, number: float) -> float:
        self._lost[model] = self._lost.get(model, 0) + number
        grown = max(0.0, self._lost[model] - self.counted.get(model, 0))
        self.counted[model] = self.counted.get(model, 0) + grown
        return grown


def in_flight(metrics: Sequence[MetricSnapshot]) -> dict[str, float]:
    """How many requests the process was answering, by model."""
    return {
        dict(series.labels).get("model", ""): series.values[0]
        for metric in metrics
        if metric.name == specs.IN_FLIGHT.name
        for series in metric.series
        if series.values[0] > 0
    }

"""Requests that died with their process, by model. Only that process's last snapshot says how many it was answering.

A process is gone once it has been silent for long enough; its last snapshot is a second old at most.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping


class LostRequests:
    """`counted` never falls: what a process that speaks again gives back is taken off what is lost next."""

    def __init__(self) -> None:
        self.counted: dict[str, float] = {}
        self._lost = defaultdict[str, float](float)

    def expect(self, models: Iterable[str]) -> None:
        """Count from 0 for these models: no rate would see a series that begins with its first loss."""
        for model in models:
            self.counted.setdefault(model, 0.0)

    def add(self, in_flight: Mapping[str, float]) -> dict[str, float]:
        """Add the requests of a process that fell silent. Returns by how much `counted` grew."""
        growth = {}
        for model, number in in_flight.items():
            self._lost[model] += number
            grown = self._lost[model] - self.counted.get(model, 0.0)
            if grown > 0:
                growth[model] = grown
                self.counted[model] = self._lost[model]
        return growth

    def give_back(self, in_flight: Mapping[str, float]) -> None:
        """Take back the requests of a process that was silent and speaks again."""
        for model, number in in_flight.items():
            self._lost[model] -= number

"""How fast a model's queue moves, measured by the requests that ended while the model was full.

What ended while there was room says nothing of a full model, and the time in which nothing was asked says nothing at
all: neither counts. After a while with room nothing is known: other requests may come than before. Knows nothing of
queues.
"""

from collections import deque
from dataclasses import dataclass

_REMEMBERED_ENDS = 64
_REMEMBER_S = 30.0
_REMEMBER_TIMES = 4  # times a request's own duration, if that is longer: long requests end too rarely otherwise
_FEWEST_ENDS = 3  # fewer say too little


@dataclass(frozen=True, slots=True)
class _End:
    at_s: float
    seconds: float
    num_places: int  # taken meanwhile


class Drain:
    """Remembers the latest ends for a while. Times are seconds of one clock."""

    def __init__(self) -> None:
        self._ends: deque[_End] = deque(maxlen=_REMEMBERED_ENDS)
        self._room_since_s: float | None = None

    @property
    def has_room(self) -> bool:
        """Whether the model had room at the last report."""
        return self._room_since_s is not None

    def has_room_from(self, now_s: float) -> None:
        """The model has room from now on."""
        self._room_since_s = now_s

    def is_full_from(self, now_s: float) -> None:
        """The model is full again. Ends before a long time with room say nothing about these requests."""
        if self._room_since_s is not None and now_s - self._room_since_s > _REMEMBER_S:
            self._ends.clear()
        self._room_since_s = None

    def ended(self, now_s: float, seconds: float, num_places: int) -> None:
        """A request was answered after so many seconds, while the model was full with so many places."""
        self._ends.append(_End(now_s, seconds, num_places))

    def seconds_until_free(self, now_s: float, num_places: int, num_places_now: int) -> float | None:
        """How long until so many places have become free; None if that isn't known.

        That is requests in flight over the mean time of one, Little's law, which needs no watching of the clock.
        `num_places_now` are those of the model now: those of new replicas count at once.
        """
        ends = self._recent_ends(now_s)
        if ends is None:
            return None
        return num_places * sum(end.seconds / max(end.num_places, num_places_now) for end in ends) / len(ends)

    def usual_seconds(self, now_s: float) -> float:
        """The median time of one request; 0 if it isn't known."""
        ends = self._recent_ends(now_s)
        return sorted(end.seconds for end in ends)[len(ends) // 2] if ends else 0.0

    def _recent_ends(self, now_s: float) -> "deque[_End] | None":
        while self._ends and now_s - self._ends[0].at_s > max(_REMEMBER_S, _REMEMBER_TIMES * self._ends[0].seconds):
            self._ends.popleft()
        return self._ends if len(self._ends) >= _FEWEST_ENDS else None

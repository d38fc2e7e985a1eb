"""How long a streamed answer's pieces are gathered before they are written, where each write is dear."""

from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST_S = 0.25  # what a reader takes for a steady flow


class Pace:
    """One for all streams of a process, on one event loop.

    Each is written to at most every `interval_s`; and, where all of them together would make more than
    `max_writes_per_s`, as seldom as that takes, but every 0.25 s at least.
    """

    def __init__(self, interval_s: float, max_writes_per_s: float | None = None) -> None:
        self._interval_s = interval_s
        self._max_writes_per_s = max_writes_per_s
        self._num_streams = 0

    @contextmanager
    def stream(self) -> Iterator[None]:
        """A stream is open inside the block."""
        self._num_streams += 1
        try:
            yield
        finally:
            self._num_streams -= 1

    @property
    def interval_s(self) -> float:
        """Seconds to gather what comes after a write; 0 where each piece goes at once."""
        if self._max_writes_per_s is None:
            return self._interval_s
        return max(self._interval_s, min(_LONGEST_S, self._num_streams / self._max_writes_per_s))

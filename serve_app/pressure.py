"""How long a replica's requests wait for their first token, now: a figure that autoscaling can act on.

A mean of past requests would be silent exactly while everything waits, so the wait of the oldest request that has
no token yet counts as soon as it is longer.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

WINDOW_S = 15.0


class FirstTokenClock:
    """Used with `with clock.waiting() as has_token:`; call `has_token()` at the first token."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[int, float] = {}  # by arrival, so the oldest comes first
        self._recent: deque[tuple[float, float]] = deque()
        self._next_key = 0

    @contextmanager
    def waiting(self) -> Iterator[Callable[[], None]]:
        """A request waits in this block until `has_token` is called or the block ends."""
        key, started_at = self._next_key, self._clock()
        self._next_key += 1
        self._waiting[key] = started_at

        def has_token() -> None:
            if self._waiting.pop(key, None) is not None:
                now = self._clock()
                self._recent.append((now, now - started_at))
                self._forget(now)

        try:
            yield has_token
        finally:
            self._waiting.pop(key, None)

    def seconds(self) -> float:
        """The mean of the last `WINDOW_S` seconds, or the wait of the oldest request if that is longer."""
        now = self._clock()
        self._forget(now)
        oldest = now - next(iter(self._waiting.values()), now)
        mean = sum(wait for _, wait in self._recent) / len(self._recent) if self._recent else 0.0
        return max(oldest, mean)

    def _forget(self, now: float) -> None:
        while self._recent and now - self._recent[0][0] > WINDOW_S:
            self._recent.popleft()

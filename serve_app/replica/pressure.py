"""Figures for autoscaling: how long requests wait for their first token, and what waits elsewhere.

A mean of past requests would be silent exactly while everything waits, so the wait of the oldest request that has
no token yet counts as soon as it is longer.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve_app.config.autoscaling import INGRESS_REQUESTS, INGRESS_TOKENS
from serve_app.metrics.snapshot import Waiting

WINDOW_S = 15.0
_HEARD_FOR_S = 10.0  # the life of a report of what waits elsewhere


class Elsewhere:
    """What waits for this model's turns in the ingresses, by the sidecar's last report."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting = Waiting()
        self._reported_at = clock()

    def report(self, waiting: Waiting) -> None:
        self._waiting, self._reported_at = waiting, self._clock()

    def pressure(self) -> dict[str, float]:
        """By the names that `autoscaling.py` scales by; nothing waits where no report has come for a while."""
        waiting = self._waiting if self._clock() - self._reported_at <= _HEARD_FOR_S else Waiting()
        return {INGRESS_REQUESTS: waiting.requests, INGRESS_TOKENS: waiting.tokens}


class FirstTokenClock:
    """Used with `with clock.waiting() as has_token:`; call `has_token()` at the first token."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[object, float] = {}
        self._recent: deque[tuple[float, float]] = deque()

    @contextmanager
    def waiting(self, waited_s: float = 0.0) -> Iterator[Callable[[], None]]:
        """A request waits from `waited_s` ago until `has_token` is called or the block ends."""
        key, started_at = object(), self._clock() - waited_s
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
        oldest = now - min(self._waiting.values(), default=now)
        mean = sum(wait for _, wait in self._recent) / len(self._recent) if self._recent else 0.0
        return max(oldest, mean)

    def _forget(self, now: float) -> None:
        while self._recent and now - self._recent[0][0] > WINDOW_S:
            self._recent.popleft()

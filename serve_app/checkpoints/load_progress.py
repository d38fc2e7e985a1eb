"""The current step of a replica's start, in words, for its log and for the sidecar.

Knows nothing of what is fetched or loaded. Any thread may report a step.
"""

import logging
import threading
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

LOG_PERIOD_S = 5.0

Report = Callable[[str], None]


def to_nobody(step: str) -> None:
    """A `Report` that does nothing."""


class LoadProgress:
    """The current step of one model's start. Call it with each step; `end` it when the model is ready or failed."""

    def __init__(self, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._model = model
        self._clock = clock
        self._logged_at = float("-inf")
        self._logged_kind = ""
        self.step: str | None = None

    def __call__(self, step: str) -> None:
        """Log a new kind of step (its first word) at once, the same kind again at most every `LOG_PERIOD_S`."""
        self.step = step
        kind, now = step.partition(" ")[0], self._clock()
        if kind != self._logged_kind or now - self._logged_at >= LOG_PERIOD_S:
            self._logged_kind, self._logged_at = kind, now
            _log.info("model=%s: %s", self._model, step)

    def end(self) -> None:
        self.step = None


class DownloadProgress:
    """Counts bytes from many threads and reports them as «downloading 1.2 of 4.9 GB»."""

    def __init__(self, report: Report, num_total_bytes: int | None) -> None:
        self._report = report
        self._total = num_total_bytes
        self._lock = threading.Lock()
        self._done = 0

    def add(self, num_bytes: int) -> None:
        with self._lock:
            self._done += num_bytes
            done = self._done
        self._report(f"downloading {amount(done, self._total)}")


def amount(num_bytes: int, num_total: int | None = None) -> str:
    """`1.2 of 4.9 GB`, in the unit that suits the larger; without a total `1.2 GB`."""
    size, unit = next(
        ((size, unit) for size, unit in ((1e9, "GB"), (1e6, "MB")) if (num_total or num_bytes) >= size), (1e3, "kB")
    )
    of_total = f" of {num_total / size:.1f}" if num_total else ""
    return f"{num_bytes / size:.1f}{of_total} {unit}"

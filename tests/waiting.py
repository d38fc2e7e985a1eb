"""Waits for what a page shows."""

import time
from collections.abc import Callable
from typing import TypeVar

_TIMEOUT_S = 90.0
Found = TypeVar("Found")


def until(look: Callable[[], Found], what: str) -> Found:
    """What `look` finds, once it finds something. A generous deadline, not a measurement."""
    deadline = time.monotonic() + _TIMEOUT_S
    last: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except Exception as exc:  # noqa: BLE001 -- elements come and go while the page is drawn
            last = exc
        else:
            last = None
        time.sleep(0.05)
    raise AssertionError(f"waited {_TIMEOUT_S:.0f} s for {what}: {last}")

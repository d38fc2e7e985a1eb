"""A wall clock that jumps: where this folder is on PYTHONPATH, every Python process imports this file as it starts.

`time.time` is then off by the seconds in the file that `WALL_CLOCK_FILE` names, which may change at any time.
"""

import os
import time
from pathlib import Path

_LOOK_EVERY_S = 0.1


def _shift(path: Path) -> None:
    true_time, true_time_ns = time.time, time.time_ns
    offset_s, looked_at = 0.0, float("-inf")

    def offset() -> float:
        nonlocal offset_s, looked_at
        if time.monotonic() - looked_at > _LOOK_EVERY_S:
            offset_s, looked_at = float(path.read_text()), time.monotonic()
        return offset_s

    time.time = lambda: true_time() + offset()
    time.time_ns = lambda: true_time_ns() + round(offset() * 1e9)


if "WALL_CLOCK_FILE" in os.environ:
    _shift(Path(os.environ["WALL_CLOCK_FILE"]))

"""Ends a process whose event loop is stuck, but not one that only gets no processor.

A loop is stuck when its thread runs or waits in one place. A thread of this process looks: it takes off what the
loop's thread waited for a processor, by the kernel's count, and what it missed itself, as on a machine that stood
still. Ray Serve's own checks take half a minute; they end what keeps Python's lock for ever, which this thread needs
too.
"""

import asyncio
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

STUCK_AFTER_S = 8.0  # a loaded loop is seconds late at most; with what it takes to notice, within 10
_LOOKS = 8  # before a loop counts as stuck
_STDERR = 2  # the file that Ray keeps of the process
_LOOPS = ("asyncio.events", "asyncio.base_events")  # uvloop has no frames
_MACHINERY = ("asyncio.", "threading", "concurrent.", "ray.", "uvicorn.")  # whose frames stay while the work changes


async def end_if_stuck(stuck_after_s: float = STUCK_AFTER_S) -> None:
    """Watch forever. If this event loop stays in one place too long, log the place and end the process."""
    watch = _Watch(stuck_after_s)
    threading.Thread(target=watch.run, name="loop-watch", daemon=True).start()
    try:
        while True:
            watch.sign_of_life()
            # Where Python's lock is held, only C's own timer can still say by what.
            faulthandler.dump_traceback_later(stuck_after_s + 2, file=_STDERR)
            await asyncio.sleep(stuck_after_s / _LOOKS)
    finally:
        faulthandler.cancel_dump_traceback_later()
        watch.stop()


class _Watch:
    """Made on the loop's thread; runs on another."""

    def __init__(self, stuck_after_s: float) -> None:
        self._stall = Stall(_starved_s(threading.get_native_id()))
        self._loop_thread = threading.get_ident()
        self._stuck_after_s = stuck_after_s
        self._has_lived = True
        self._is_over = threading.Event()

    def sign_of_life(self) -> None:
        self._has_lived = True

    def stop(self) -> None:
        self._is_over.set()

    def run(self) -> None:
        period_s = self._stuck_after_s / _LOOKS
        while not self._is_over.wait(period_s):
            has_lived, self._has_lived = self._has_lived, False
            place = None if has_lived else _place(sys._current_frames().get(self._loop_thread))
            if self._stall.look(has_lived, place, 1.5 * period_s) >= self._stuck_after_s:
                self._end()

    def _end(self) -> None:
        """Without the log's handlers, whose lock the loop's thread may hold."""
        words = f"the event loop has stood in one place for {self._stuck_after_s:g} s: this process ends\n"
        os.write(_STDERR, words.encode())
        faulthandler.dump_traceback(_STDERR)
        os._exit(1)


class Stall:
    """How long a thread has stayed in one place while it had a processor; `starved_s` is the time without one."""

    def __init__(self, starved_s: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._starved_s = starved_s
        self._clock = clock
        self._seconds = 0.0
        self._place: object = None
        self._looked_at, self._starved_before_s = clock(), starved_s()

    def look(self, has_lived: bool, place: object, longest_s: float) -> float:
        """The seconds until now. A look counts for `longest_s` at most: whoever comes late was held up as well."""
        now, starved_s = self._clock(), self._starved_s()
        passed_s = min(now - self._looked_at, longest_s) - (starved_s - self._starved_before_s)
        self._looked_at, self._starved_before_s = now, starved_s
        if has_lived or (place is not self._place and None not in (place, self._place)):
            self._seconds = 0.0
        else:
            self._seconds += max(0.0, passed_s)
        self._place = place
        return self._seconds


def _starved_s(thread: int) -> Callable[[], float]:
    """Reads how long this thread of ours was ready and had no processor, from Linux's schedstat; 0 without it."""
    path = Path(f"/proc/self/task/{thread}/schedstat")

    def read() -> float:
        try:
            return int(path.read_text().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    return read


def _place(frame: FrameType | None) -> object:
    """What the loop runs now: the outermost frame outside the machinery; None if it runs nothing of ours."""
    outermost = None
    while frame is not None and (module := frame.f_globals.get("__name__", "")) not in _LOOPS:
        if not module.startswith(_MACHINERY):
            outermost = frame
        frame = frame.f_back
    return outermost

"""A stuck event loop ends its process; one that gets no processor, or whose machine stood still, goes on."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serve_app.deployments.loop_watch import Stall

pytestmark = pytest.mark.engine

STUCK_AFTER_S = 1.0
DEADLINE_S = 60.0
LOOPS = {"asyncio": "asyncio.new_event_loop()", "uvloop": "__import__('uvloop').new_event_loop()"}
STUCK = {
    "it sleeps": "time.sleep(1000)",
    "it computes": "while True: pass",
    "it waits for a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "it reads": "os.read(os.pipe()[0], 1)",
}


def start(work: str, loop: str = "asyncio", on_processor: int | None = None) -> "subprocess.Popen[str]":
    """A process whose loop, on a thread of its own as in Ray Serve, does `work` once, and then says "done"."""
    program = f"""
        import asyncio, os, sys, threading, time
        from serve_app.deployments.loop_watch import end_if_stuck
        if {on_processor!r} is not None:
            os.sched_setaffinity(0, [{on_processor!r}])
            os.nice(19)
        async def main():
            watch = asyncio.create_task(end_if_stuck({STUCK_AFTER_S}))
            await asyncio.sleep(0.3)
            print("begun", flush=True)
            await work()
            print("done", flush=True)
            await asyncio.sleep(1000)
        async def work():
            {work}
        loop = {LOOPS[loop]}
        thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
        thread.start()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@contextmanager
def started(work: str, loop: str = "asyncio", on_processor: int | None = None) -> Iterator["subprocess.Popen[str]"]:
    """The process, whose work has begun."""
    process = start(work, loop, on_processor)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("work", STUCK.values(), ids=STUCK)
def test_a_stuck_loop_ends_its_process_and_says_where(work: str, loop: str) -> None:
    with started(work, loop) as process:
        _, log = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 1
        assert "the event loop has stood in one place for 1 s" in log
        assert "in work" in log


def test_a_machine_that_stood_still_ends_nothing() -> None:
    with started("await asyncio.sleep(0)") as process:
        for _ in range(2):
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(3 * STUCK_AFTER_S)
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(STUCK_AFTER_S)
        assert process.poll() is None


def test_a_loop_without_a_processor_is_not_stuck() -> None:
    """It computes for half a second, less than what counts as stuck, and has some hundredths of a processor."""
    processor = min(os.sched_getaffinity(0))
    burn = f"import os; os.sched_setaffinity(0, [{processor}])\nwhile True: pass"
    with started(
        "end = time.thread_time() + 0.5\n            while time.thread_time() < end: pass", "asyncio", processor
    ) as process:
        others = [subprocess.Popen([sys.executable, "-c", burn]) for _ in range(3)]
        try:
            time.sleep(4 * STUCK_AFTER_S)
            assert process.poll() is None
        finally:
            for other in others:
                other.kill()
                other.wait()
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"


class Scripted:
    """The clock and the kernel's count of a thread's waits."""

    def __init__(self) -> None:
        self.now = self.starved = 0.0

    def stall(self) -> Stall:
        return Stall(lambda: self.starved, lambda: self.now)

    def after(
        self, stall: Stall, seconds: float, starved: float = 0.0, alive: bool = False, place: object = 1
    ) -> float:
        self.now += seconds
        self.starved += starved
        return stall.look(alive, place, 1.5)


def test_only_time_in_one_place_with_a_processor_counts() -> None:
    world = Scripted()
    stall = world.stall()
    assert world.after(stall, 1, alive=True) == 0
    assert [world.after(stall, 1) for _ in range(3)] == [1, 2, 3]
    assert world.after(stall, 1, starved=1) == 3  # it was ready, and others ran
    assert world.after(stall, 100) == 4.5  # this thread, too, was held up
    assert world.after(stall, 1, starved=5) == 4.5
    assert world.after(stall, 1, place=2) == 0  # it does something else: late, not stuck
    assert world.after(stall, 1, place=2) == 1
    assert world.after(stall, 1, place=None) == 2  # nothing of ours runs: no progress
    assert world.after(stall, 1, alive=True) == 0

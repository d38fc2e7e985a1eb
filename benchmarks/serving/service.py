"""A service as processes: started with its own mark and log, known by the ids of its roots, and ended by them.

Knows nothing of what is served. Only what was started here is ever ended, by id, and children before they can be
forgotten: Ray's processes may outlive the one that started them.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.serving.processes import MARK, Process, living, read_processes

STOP_TIMEOUT_S = 60.0  # Ray Serve drains its replicas first
KILL_TIMEOUT_S = 10.0
NUM_LOG_LINES = 12


@dataclass(frozen=True, slots=True)
class Command:
    """One process to start; `environment` is added to this process's own."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


class Service:
    """The processes of one service. `mark` is unique in this run and machine."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self.mark = f"{name}-{os.getpid()}-{time.monotonic_ns()}"
        self._log = log
        self._started: list[subprocess.Popen[bytes]] = []

    @property
    def roots(self) -> list[int]:
        return [process.pid for process in self._started]

    def start(self, commands: Sequence[Command], folder: Path) -> None:
        """Each in a session of its own, so that Ctrl-C reaches them in order, through `stop`."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            for command in commands:
                environment = {**os.environ, **command.environment, MARK: self.mark}
                self._started.append(
                    subprocess.Popen(
                        command.words, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=log,
                        stderr=subprocess.STDOUT, process_group=0,
                    )
                )  # fmt: skip

    def ended(self) -> str | None:
        """What tells that one of the processes has ended; None while all run."""
        codes = [process.poll() for process in self._started]
        return next((f"ended with {code}" for code in codes if code is not None), None)

    def last_lines(self) -> str:
        """The end of its log, for a row of the table that says what went wrong."""
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return "\n".join(line[:300] for line in lines[-NUM_LOG_LINES:])

    def stop(self) -> None:
        """Ask each root to end, then end what is left by force. Idempotent."""
        left = living(self.roots, [self.mark]) if self._started else []
        for process in self._started:
            process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in self._started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        left += living(self.roots, [self.mark]) if self._started else []
        _kill(left)
        for process in self._started:
            process.wait()
        self._started = []


def _kill(processes: Sequence[Process]) -> None:
    """End those of them that still run, and wait until they are gone."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    for process in (running := _running(processes)):
        with suppress(ProcessLookupError):
            os.kill(process.id, signal.SIGKILL)
    while _running(running) and time.monotonic() < deadline:
        time.sleep(0.05)


def _running(processes: Sequence[Process]) -> list[Process]:
    """Another process may have got an old one's id; one whose end its parent has yet to notice has no command."""
    wanted = {(process.id, process.started) for process in processes}
    return [one for one in read_processes() if (one.id, one.started) in wanted and one.command]

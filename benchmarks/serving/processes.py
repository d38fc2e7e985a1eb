"""Which processes a system consists of, what each one is, and how much processor time it took.

Reads `/proc`; knows nothing of HTTP. A system is the tree below the processes that were started for it and whatever
else carries its mark in the environment: Ray's workers and HAProxy may be adopted by others. Processor time is that
of a process's living threads and its ended ones, user and kernel, to 10 ms.
"""

import os
import re
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

MARK = "SERVING_BENCH_SERVICE"  # in the environment of all that a service consists of: its name in this run
SAMPLE_EVERY_S = 0.1  # often enough to leave out what isn't the cell's; about 0.5 % of a core
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")

ENGINE_CORE, ENGINE_WORKER, WHOLE = "engine core", "engine worker", "server and engine"
ENGINE_ROLES = (ENGINE_CORE, ENGINE_WORKER)
# The first that is found in a process's title or command line. Ray's own come last: their arguments name everything.
_ROLES: tuple[tuple[str, str], ...] = (
    (r"^VLLM::EngineCore", ENGINE_CORE),
    (r"^VLLM::Worker", ENGINE_WORKER),
    (r"^ray::ServeReplica:.*:(Model|LLMServer)", "replica"),
    (r"^ray::ServeReplica:.*:(Ingress|OpenAiIngress)", "ingress"),
    (r"^ray::ServeReplica:.*:LLMRouter", "router"),
    (r"^ray::ServeReplica:.*:Metrics", "metrics"),
    (r"^ray::(ProxyActor|HAProxyManager)", "Serve proxy"),
    (r"^ray::(ServeController|SERVE_CONTROLLER)", "Serve controller"),
    (r"^(\S*/)?haproxy( |$)", "HAProxy"),
    (r"(^|/)raylet( |$)", "raylet"),
    (r"(^|/)gcs_server( |$)", "GCS"),
    (r"^ray::|^ray-dashboard|ray/(dashboard|_private|autoscaler)/", "Ray's agents"),
    (r"vllm\.entrypoints\.openai\.api_server", "API server"),
    (r"/litellm( |$)", "LiteLLM"),
    (r"/transformers serve", WHOLE),
    (r"serve_app up|ray_llm_server", "driver"),
)


@dataclass(frozen=True, slots=True)
class Process:
    """`started` tells it from a later process with the same id."""

    id: int
    parent_id: int
    started: int
    command: str


@dataclass(frozen=True, slots=True)
class Spent:
    """What one process of a system took in a cell."""

    id: int
    role: str
    command: str
    cpu_s: float


def role_of(command: str) -> str:
    return next((role for pattern, role in _ROLES if re.search(pattern, command)), "other")


def members(processes: Iterable[Process], roots: Collection[int], has_mark: Callable[[int], bool]) -> set[int]:
    """The ids of the roots, of all below them, and of marked ones with all below those."""
    known = {process.id: process for process in processes}
    found = {root for root in roots if root in known}
    found |= {id for id in known if id not in found and has_mark(id)}
    is_growing = True
    while is_growing:
        below = {process.id for process in known.values() if process.parent_id in found} - found
        found |= below
        is_growing = bool(below)
    return found


def read_processes() -> list[Process]:
    """All that run now; one that ends meanwhile is left out."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, IndexError):
                fields = _stat(int(name))
                found.append(Process(int(name), int(fields[1]), int(fields[19]), _command(int(name))))
    return found


def _stat(id: int) -> list[str]:
    """The fields of `/proc/ID/stat` after the name, which may contain anything: state, parent, …"""
    text = Path(f"/proc/{id}/stat").read_text()
    return text[text.rindex(")") + 2 :].split()


def _command(id: int) -> str:
    words = Path(f"/proc/{id}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    return b" ".join(words).decode(errors="replace").strip()


def _cpu_s(id: int) -> float | None:
    """None where it has ended."""
    try:
        fields = _stat(id)
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def has_mark(id: int, mark: str) -> bool:
    """Whether the process was started with this mark. A process that changed its title may have lost it."""
    try:
        return f"{MARK}={mark}".encode() in Path(f"/proc/{id}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def living(roots: Collection[int], marks: Collection[str]) -> list[Process]:
    """The processes of a system, as they are now."""
    processes = read_processes()
    ids = members(processes, roots, lambda id: any(has_mark(id, mark) for mark in marks))
    return [process for process in processes if process.id in ids]


class CpuMeter:
    """Samples a system's processes inside its `with`; `spent` says what each took between two moments.

    Processes that start meanwhile are found at the end, and count from nothing.
    """

    def __init__(self, roots: Collection[int], marks: Collection[str]) -> None:
        self._roots, self._marks = roots, marks
        self._at_s: list[float] = []
        self._samples: list[Mapping[int, float]] = []
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._processes = living(self._roots, self._marks)
        self._sample()
        self._thread = threading.Thread(target=self._run, name="cpu meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._ended.set()
        self._thread.join()
        known = {process.id for process in self._processes}
        self._processes += [one for one in living(self._roots, self._marks) if one.id not in known]
        self._sample()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            self._sample()

    def _sample(self) -> None:
        cpu_s = {process.id: _cpu_s(process.id) for process in self._processes}
        self._at_s.append(time.perf_counter())
        self._samples.append({id: seconds for id, seconds in cpu_s.items() if seconds is not None})

    def spent(self, begin_s: float, end_s: float) -> list[Spent]:
        """By process, most first; `time.perf_counter`'s seconds."""
        spent = []
        for process in self._processes:
            cpu_s = self._total(process.id, end_s) - self._total(process.id, begin_s)
            spent.append(Spent(process.id, role_of(process.command), process.command[:100], round(cpu_s, 4)))
        return sorted(spent, key=lambda one: -one.cpu_s)

    def _total(self, id: int, moment_s: float) -> float:
        """A process's seconds up to a moment, between the samples around it; after its end, the last ones seen."""
        seen = [(at_s, sample[id]) for at_s, sample in zip(self._at_s, self._samples, strict=True) if id in sample]
        is_new = id not in self._samples[0]
        return interpolated([(self._at_s[0], 0.0), *seen] if is_new else seen, moment_s)


def interpolated(seen: list[tuple[float, float]], moment_s: float) -> float:
    """The value at a moment, between the neighbours' on a line; the nearest one outside. 0 where nothing was seen."""
    if not seen:
        return 0.0
    after = bisect_right(seen, moment_s, key=lambda one: one[0])
    if after in (0, len(seen)):
        return seen[min(after, len(seen) - 1)][1]
    (earlier_s, earlier), (later_s, later) = seen[after - 1], seen[after]
    return earlier + (later - earlier) * (moment_s - earlier_s) / (later_s - earlier_s)


def by_role(spent: Iterable[Spent]) -> dict[str, float]:
    """Processor seconds by role, most first."""
    totals: dict[str, float] = {}
    for one in spent:
        totals[one.role] = round(totals.get(one.role, 0.0) + one.cpu_s, 4)
    return dict(sorted(totals.items(), key=lambda item: -item[1]))

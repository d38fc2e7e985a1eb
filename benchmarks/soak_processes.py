"""A soaked service's processes: which there are, how large they are, and whether they grew. Looks, and kills nothing.

All stand below the service's own `serve-app up`, and are known by the titles that Ray gives them.
"""

import time
from dataclasses import dataclass

import psutil

from tests.service import RunningService

REPLICA = "ray::ServeReplica:"
PROXY = "ray::ProxyActor"
KILLED = ("script:Model", "plain:Model", "demo:Model", "ingress:Ingress", "metrics:Metrics", "proxy")
LONG_LIVED = (*KILLED, "controller")
RECOVERY_S = 90.0


@dataclass(frozen=True)
class Bounds:
    """What the end may have more than the beginning, for each role."""

    megabytes: float = 200.0
    descriptors: int = 100
    processes: int = 6  # in all: Ray keeps some idle workers


@dataclass(frozen=True, slots=True)
class Size:
    """The processes of one role together."""

    processes: int
    descriptors: int
    megabytes: float


def processes(service: RunningService) -> dict[str, list[psutil.Process]]:
    """The processes below this service's own `serve-app up`, by role."""
    roles: dict[str, list[psutil.Process]] = {}
    for process in psutil.Process(service.process.pid).children(recursive=True):
        try:
            roles.setdefault(_role(" ".join(process.cmdline())), []).append(process)
        except psutil.NoSuchProcess:
            continue
    return roles


def _role(title: str) -> str:
    if title.startswith(REPLICA):
        return ":".join(title.removeprefix(REPLICA).split(":")[:2]).split()[0].split(".")[0]
    if title.startswith(PROXY):
        return "proxy"
    return "controller" if title.startswith("ray::ServeController") else "other"


def sizes(service: RunningService) -> dict[str, Size]:
    found = {}
    for role, members in processes(service).items():
        told = []
        for process in members:
            try:
                told.append((process.num_fds(), process.memory_info().rss / 1e6))
            except psutil.NoSuchProcess:
                continue
        found[role] = Size(len(told), sum(fds for fds, _ in told), round(sum(rss for _, rss in told), 1))
    return found


def wait_until_replaced(service: RunningService, role: str, before: set[int]) -> None:
    """Until there are as many processes of the role again, a new one among them, and the service is ready."""
    deadline = time.monotonic() + RECOVERY_S
    while True:
        pids = {process.pid for process in processes(service).get(role, [])}
        if len(pids) >= len(before) and pids - before:
            break
        assert time.monotonic() < deadline, f"no new process within {RECOVERY_S:.0f} s"
        time.sleep(0.5)
    service.wait_until_ready(RECOVERY_S)


def grown(before: dict[str, Size], after: dict[str, Size], bounds: Bounds) -> list[str]:
    problems = []
    for role in LONG_LIVED:
        was, now = before.get(role, Size(0, 0, 0)), after.get(role, Size(0, 0, 0))
        if now.processes != was.processes:
            problems.append(f"{role}: {was.processes} processes before and {now.processes} after")
        if now.descriptors > was.descriptors + bounds.descriptors:
            problems.append(f"{role}: {was.descriptors} file descriptors before and {now.descriptors} after")
        if now.megabytes > was.megabytes + bounds.megabytes:
            problems.append(f"{role}: {was.megabytes:.0f} MB before and {now.megabytes:.0f} MB after")
    num_before, num_after = (sum(size.processes for size in found.values()) for found in (before, after))
    if num_after > num_before + bounds.processes:
        problems.append(f"{num_before} processes before and {num_after} after")
    return problems

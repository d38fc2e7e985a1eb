"""What `serve-app plan` says beside what Ray then does: simulated nodes with pretended GPUs, scripted models.

The cluster is the test's own: its folder, its ports, its nodes on this machine.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from ray import serve

from serve_app.config.file import model_names
from tests.plan.test_plan import planned, run
from tests.plan_cases import CASES, RAY_NODES, Case
from tests.service import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # a dozen processes start one after the other
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves the sockets that it tries ports with
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

DEADLINE_S = 240.0  # generous: a worker takes seconds to start, on a busy machine many
CALM_S = 6.0  # longer than the ingress lets its image of the models grow old
ON_RAY = [case for case in CASES if case.on_ray]
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}


class SimulatedCluster:
    """A running Ray cluster with Serve on it, to which config files are deployed one after the other."""

    def __init__(self, address: str, url: str) -> None:
        self.address = address
        self._url = url

    def deploy(self, values: dict[str, Any]) -> None:
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        client = _get_global_client()
        assert client is not None
        client.deploy_apps(ServeDeploySchema.model_validate(values))

    def models(self) -> dict[str, dict[str, Any]]:
        """`/v1/models` by name; empty while no ingress answers."""
        try:
            answer = httpx.get(f"{self._url}/v1/models", timeout=10, trust_env=False)
        except httpx.TransportError:
            return {}
        return {entry["id"]: entry for entry in answer.json()["data"]} if answer.status_code == 200 else {}

    def settled(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """The models once each is ready or says which resource it waits for.

        A model may wait just because the replicas of the file before are still stopping, so that these must be gone,
        and the models be as they are for a while.
        """
        deadline = time.monotonic() + DEADLINE_S
        seen: dict[str, tuple[str, str | None]] = {}
        since = time.monotonic()
        while time.monotonic() < deadline:
            models = self.models()
            now = {name: (entry["state"], entry.get("reason")) for name, entry in models.items()}
            is_settled = set(models) == set(names) and all(_is_settled(entry) for entry in models.values())
            if not is_settled or now != seen or self._applications() != {*names, "ingress"}:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since >= CALM_S:
                return models
            time.sleep(0.5)
        raise AssertionError(f"not settled within {DEADLINE_S} s: {models}")

    @staticmethod
    def _applications() -> set[str]:
        return set(serve.status().applications)


def _is_settled(entry: dict[str, Any]) -> bool:
    waits_for_room = "needs" in (entry.get("reason") or "")
    return waits_for_room if entry["state"] != "ready" else True


@pytest.fixture(scope="module")
def cluster() -> Iterator[SimulatedCluster]:
    import ray

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="sa-", dir="/tmp") as folder:
        (Path(folder) / "ray").mkdir()  # Ray writes its newest cluster's address there
        for name, value in {**ENVIRONMENT, "RAY_TMPDIR": folder}.items():
            patch.setenv(name, value)
        try:
            address = _started(folder)
            ray.init(address=address, namespace="serve", log_to_driver=False, logging_level="error")
            port = free_port()
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            yield SimulatedCluster(address, f"http://127.0.0.1:{port}")
        finally:
            if ray.is_initialized():
                serve.shutdown()
                ray.shutdown()
            _end_processes(folder)


def _started(folder: str) -> str:
    """The address of a cluster of `RAY_NODES`. Ray gives a node 30 seconds, which a busy machine may not keep."""
    from ray.cluster_utils import Cluster

    head, *others = (dict(pair.split("=") for pair in spec.split(",")) for spec in RAY_NODES)
    for is_last in (False, False, True):
        try:
            own_port = {"include_dashboard": False, "dashboard_port": free_port()}
            cluster = Cluster(initialize_head=True, head_node_args=_node(head) | own_port)
            for node in others:
                cluster.add_node(**_node(node))
            return str(cluster.address)
        except Exception:  # whatever keeps Ray from starting beside other clusters: a port taken, a node too slow
            _end_processes(folder)
            if is_last:
                raise
    raise AssertionError("unreachable")


def _node(given: dict[str, str]) -> dict[str, Any]:
    return {"num_cpus": int(given["CPU"]), "num_gpus": int(given.get("GPU", 0)), "node_name": given["name"]}


def _end_processes(folder: str) -> None:
    """Those that this process started for the cluster in this folder."""
    mine = [process for process in psutil.Process().children(recursive=True) if _is_of(process, folder)]
    for process in mine:
        process.kill()
    psutil.wait_procs(mine, timeout=20)


def _is_of(process: psutil.Process, folder: str) -> bool:
    try:
        return folder in " ".join(process.cmdline())
    except psutil.Error:  # it ended meanwhile
        return False


@pytest.mark.parametrize("case", ON_RAY, ids=lambda case: case.name)
def test_ray_does_what_the_plan_says(cluster: SimulatedCluster, case: Case, tmp_path: Path) -> None:
    plan = planned(case, tmp_path)
    values = _own_names(case)
    names = model_names(values)
    cluster.deploy(values)
    models = cluster.settled(names)
    waiting = {name for name, entry in models.items() if entry["state"] != "ready" or entry.get("reason")}
    said = {f"{case_id(case)}-{row.application.name}" for row in plan.rows if not row.fit.is_whole}
    assert len(waiting) == len(said)  # of models that are alike, Ray may leave out another one
    assert said == {f"{case_id(case)}-{name}" for name in case.unplaced}
    for name in waiting:
        reason = models[name]["reason"]
        assert name in reason or models[name]["state"] == "ready"
        assert "GPU" in reason
        assert "node 'two'" in reason
        assert "node 'one'" in reason


def case_id(case: Case) -> str:
    return str(ON_RAY.index(case))


def _own_names(case: Case) -> dict[str, Any]:
    """Names that no case before it used, so that no replica of one is taken for this one's; the ingress stays."""
    values = case.values()
    for app in values["applications"]:
        if app["import_path"] == "serve_app.app:build_model":
            app["name"] = f"{case_id(case)}-{app['name']}"
    values["applications"][-1]["deployments"][0]["user_config"] = {"models": model_names(values)}
    return values


def test_the_live_cluster_is_planned_for_and_its_own_replicas_count_as_free(
    cluster: SimulatedCluster, tmp_path: Path
) -> None:
    """With what is deployed and waits, the same file still fits, or doesn't, as on empty nodes."""
    case = next(c for c in ON_RAY if c.name == "one for each GPU")
    values = _own_names(case)
    cluster.deploy(values)
    cluster.settled(model_names(values))
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(values))
    fits = run("plan", str(path), "--address", cluster.address)
    assert fits.returncode == 0, fits.stdout + fits.stderr
    beside = tmp_path / "beside.yaml"
    beside.write_text(yaml.safe_dump(case.values()))  # other names: what is deployed holds every GPU
    full = run("plan", str(beside), "--address", cluster.address)
    assert full.returncode == 1, full.stdout + full.stderr
    assert "0 of 2 GPU free" in full.stdout

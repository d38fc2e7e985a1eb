"""`serve-app up` as a user meets it: what can't work is one sentence, and nothing stays behind."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import CONFIG
from tests.service import free_port, serving


def up(*arguments: str) -> "subprocess.CompletedProcess[str]":
    with tempfile.TemporaryDirectory(prefix="sa-", dir="/tmp") as folder:
        return subprocess.run(
            [sys.executable, "-m", "serve_app", "up", *arguments],
            capture_output=True, text=True, timeout=120, env={**os.environ, "RAY_TMPDIR": folder},
        )  # fmt: skip


def test_a_missing_file_and_an_unknown_key(tmp_path: Path) -> None:
    missing = up(str(tmp_path / "no.yaml"))
    assert missing.returncode == 2
    assert "no.yaml doesn't exist" in missing.stderr
    path = tmp_path / "config.yaml"
    path.write_text("applications: [{name: m, import_path: 'serve_app.app:build_model', args: {sorce: demo}}]")
    unknown = up(str(path))
    assert unknown.returncode == 2
    assert "did you mean 'source'" in unknown.stderr
    assert "Traceback" not in missing.stderr + unknown.stderr


def test_a_taken_port() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = up("--port", str(port), "--address", "local")
    assert refused.returncode == 2
    assert f"port {port} on 127.0.0.1 can't be used" in refused.stderr
    assert "--port" in refused.stderr


def test_an_address_where_no_ray_runs() -> None:
    refused = up("--address", "127.0.0.1:1")
    assert refused.returncode == 2
    assert "no Ray cluster answers at '127.0.0.1:1'" in refused.stderr


@pytest.mark.cluster
@pytest.mark.timeout(600)  # two services, one after the other
def test_a_cluster_of_its_own_fails_one_model_serves_the_other_and_leaves_nothing(tmp_path: Path) -> None:
    """One start for several promises: a second Ray cluster is slow on a small machine."""
    _, script, ingress, metrics = CONFIG["applications"]
    script = {**script, "route_prefix": None}
    args = {"source": str(tmp_path / "nowhere"), "num_cpus": 0.1, "start_attempts": 1}
    missing = {**script, "name": "missing", "args": args}
    wide = {**script, "name": "wide", "args": {**script["args"], "num_gpus": 64}}
    ingress = {
        **ingress,
        "args": {"num_cpus": 0.2, "request_timeout_s": 5},
        "deployments": [{"name": "Ingress", "user_config": {"models": ["script", "missing", "wide"]}}],
    }
    with serving({**CONFIG, "applications": [script, missing, wide, ingress, metrics]}) as service:
        log = (service.temp_dir / "up.log").read_text()
        assert "FAILED missing: " in log
        assert "PENDING wide: it needs 64 GPU and 0.1 CPU on one node: node '" in log
        with service.client as client:
            models = wait_for_state(client, "missing", "failed")
            assert "nowhere" in models["missing"]["reason"]
            assert models["script"]["state"] == "ready"
            assert models["wide"]["state"] == "pending"
            assert models["wide"]["reason"].startswith("model 'wide': needs 64 GPU and 0.1 CPU on one node: node '")
            hi = {"messages": [{"role": "user", "content": "hi"}]}
            assert client.post("/v1/chat/completions", json={"model": "script"} | hi).status_code == 200
            refused = client.post("/v1/chat/completions", json={"model": "missing"} | hi)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_not_ready")
            assert [client.get(f"/ready{query}").status_code for query in ("", "?all=1")] == [200, 503]
            check_state_metrics(client, {"script": "ready", "missing": "failed", "wide": "pending"})
            check_deadline(client, hi)
        second = up_beside(service.temp_dir)
        assert second.returncode == 2
        assert "already serves" in second.stderr
        (dashboard_url,) = re.findall(r"Ray's dashboard: (\S+)", log)
        check_loopback_only(service.url, dashboard_url)
        children = psutil.Process(service.process.pid).children(recursive=True)
        assert len(children) > 5
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert service.process.returncode == 0


def check_state_metrics(client: httpx.Client, states: dict[str, str]) -> None:
    """Each state's series is there within seconds; the ingress reports once a second."""
    deadline = time.monotonic() + 60
    while True:
        found = re.findall(
            r'serve_app_model_state\{model="(.*?)",replica=".*?",state="(.*?)"\} 1', client.get("/metrics").text
        )
        if dict(found) == states:
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def check_deadline(client: httpx.Client, hi: dict[str, Any]) -> None:
    """An answer that never ends is a 504; one that has begun ends with an error event and without its end."""
    hang = {"model": "script", "messages": [{"role": "user", "content": "!hang"}]}
    late = client.post("/v1/chat/completions", json=hang)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    begun = client.post("/v1/chat/completions", json=hang | {"stream": True})
    assert begun.status_code == 200
    assert json.loads(begun.text.strip().split("data: ")[-1])["error"]["code"] == "deadline_exceeded"
    assert "[DONE]" not in begun.text
    assert client.post("/v1/chat/completions", json={"model": "script"} | hi).status_code == 200


def wait_for_state(client: httpx.Client, model: str, state: str) -> dict[str, Any]:
    """The models by name, once this one is in that state: the ingress looks every second."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        models = {entry["id"]: entry for entry in client.get("/v1/models").json()["data"]}
        if models[model]["state"] == state:
            return models
        time.sleep(0.3)
    raise AssertionError(models)


def up_beside(ray_folder: Path) -> "subprocess.CompletedProcess[str]":
    """A second `up` that finds the cluster of the first."""
    (address,) = re.findall(r"Ray is up at (\S+)", (ray_folder / "up.log").read_text())
    return subprocess.run(
        [sys.executable, "-m", "serve_app", "up", "--port", str(free_port()), "--address", address],
        capture_output=True, text=True, timeout=120, env={**os.environ, "RAY_TMPDIR": str(ray_folder)},
    )  # fmt: skip


def check_loopback_only(*urls: str) -> None:
    """What listens at these addresses' ports listens on 127.0.0.1 and nowhere else."""
    for url in urls:
        port = int(url.rpartition(":")[2])
        sockets: list[Any] = psutil.net_connections("tcp")
        listeners = [s for s in sockets if s.status == psutil.CONN_LISTEN and s.laddr.port == port]
        assert {listener.laddr.ip for listener in listeners} == {"127.0.0.1"}, (url, listeners)


@pytest.mark.cluster
def test_ctrl_c_drains_also_where_ray_is_set_for_throughput() -> None:
    """As docs/operations.md has it for production: Ray Serve's handles then want an event loop, and `up` has none."""
    _, script, ingress, metrics = CONFIG["applications"]
    names = {"name": "Ingress", "user_config": {"models": ["script"]}}
    config = {**CONFIG, "applications": [script, {**ingress, "deployments": [names]}, metrics]}
    with serving(config, env={"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}) as service:
        body = {"messages": [{"role": "user", "content": "!tokens 500"}], "stream": True}
        with service.client as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data:")
            service.process.send_signal(signal.SIGINT)
            assert "data: [DONE]" in list(lines), "it has time to end"
        service.process.wait(timeout=60)
        log = (service.temp_dir / "up.log").read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1].endswith("stopped")
    assert service.process.returncode == 0


def test_a_ray_that_does_not_come_up_is_one_sentence(tmp_path: Path) -> None:
    """Here because no socket's name can be that long; Ray tells it like any failure of its start."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    refused = subprocess.run(
        [sys.executable, "-m", "serve_app", "up", "--address", "local", "--port", str(free_port())],
        capture_output=True, text=True, timeout=120, env={**os.environ, "RAY_TMPDIR": str(folder)},
    )  # fmt: skip
    assert refused.returncode == 2
    assert "Ray didn't start (" in refused.stderr
    assert "Traceback" not in refused.stderr

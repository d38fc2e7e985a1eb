"""A real service for the tests: `serve-app up` as a process of its own, on its own Ray cluster, ports and folder."""

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

START_TIMEOUT_S = 400.0  # vLLM alone takes half a minute on two quiet cores


@dataclass(frozen=True)
class RunningService:
    """Where it listens and which process is its `serve-app up`."""

    url: str
    process: "subprocess.Popen[str]"
    temp_dir: Path

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False)

    def log(self) -> str:
        """What our processes have logged, one file after another."""
        files = sorted(self.temp_dir.rglob("serve_app_*.log*"))
        return "".join(file.read_text(errors="replace") for file in files)

    def wait_until_ready(self, timeout_s: float = 60.0) -> None:
        """Until `/ready` says it of every model. A generous deadline, not a measurement."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.url}/ready?all=1", timeout=5, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"not ready within {timeout_s} s")


def free_port() -> int:
    """A port that nobody listens at, of a range from which neither Linux nor Ray gives any to others meanwhile."""
    while True:
        port = random.randint(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def serving(
    config: dict[str, Any],
    start_timeout_s: float = START_TIMEOUT_S,
    env: dict[str, str] | None = None,
    address: str = "local",
    options: Sequence[str] = (),
) -> Iterator[RunningService]:
    """The config, served with `env` added; stopped as a user would, with Ctrl-C's signal. `address` is Ray's.

    `options` are further ones of `serve-app up`.
    """
    with tempfile.TemporaryDirectory(prefix="sa-", dir="/tmp") as folder:  # short: Ray puts sockets below it
        temp_dir = Path(folder)
        path = temp_dir / "serve_config.yaml"
        path.write_text(yaml.safe_dump(config))
        port = free_port()
        with (temp_dir / "up.log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "serve_app", "up", str(path), "--port", str(port), "--address", address,
                 "--drain-seconds", "20", *options],
                stdout=log, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0", **(env or {})},
            )  # fmt: skip
        service = RunningService(f"http://127.0.0.1:{port}", process, temp_dir)
        try:
            _wait_for_start(service, start_timeout_s)
            yield service
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def serve_deploy(values: dict[str, Any], dashboard_url: str, environment: dict[str, str]) -> None:
    """`serve deploy`, as an engineer runs it; `environment` holds what the cluster's token needs."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        command = [str(Path(sys.executable).parent / "serve"), "deploy", "--address", dashboard_url, file.name]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr


def put_config(values: dict[str, Any], dashboard_url: str, token: str) -> None:
    """The request that `serve deploy` makes, without the seconds in which that command starts. `token` is Ray's."""
    url, headers = f"{dashboard_url}/api/serve/applications/", {"authorization": f"Bearer {token}"}
    answer = httpx.put(url, json=values, headers=headers, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text


def _wait_for_start(service: RunningService, timeout_s: float) -> None:
    log = service.temp_dir / "up.log"
    deadline = time.monotonic() + timeout_s
    while "Ctrl-C stops it" not in log.read_text():
        if service.process.poll() is not None or time.monotonic() > deadline:
            raise AssertionError(f"the service didn't start:\n{log.read_text()}")
        time.sleep(0.2)

"""A service from a config file: Ray found or started, Serve on it, applications deployed, and all of it ended again.

Used by `serve-app up` on one machine. On a cluster `serve deploy` or KubeRay do this from the same file.
"""

import io
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import httpx

from serve_app.catalog import last_line
from serve_app.errors import ConfigError

Say = Callable[[str], None]

POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Service:
    """A deployed service: where it listens, and what became of each application."""

    url: str
    dashboard_url: str | None
    failures: dict[str, str]


@contextmanager
def running(values: dict[str, Any], address: str | None, say: Say) -> Iterator[Service]:
    """Serve the config inside the `with`. Everything that was started here is ended at its end.

    `address` is Ray's: None joins a cluster that runs on this machine or starts one, `local` always starts one.
    Raises `ConfigError` where the port is taken or the cluster serves something else.
    """
    http = values.get("http_options") or {}
    host, port = http.get("host", "127.0.0.1"), int(http.get("port", 8000))
    _require_free_port(host, port)
    with _ray(address, say) as dashboard_url, _serve(values, host, port):
        failures = _deploy(values, say)
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        _wait_for_http(url, failures)
        yield Service(url, dashboard_url, failures)


def _require_free_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            raise ConfigError(
                f"port {port} on {host} can't be used ({os.strerror(exc.errno or 0)}): stop what listens there, "
                "or choose another with PORT=… or --port"
            ) from exc


@contextmanager
def _ray(address: str | None, say: Say) -> Iterator[str | None]:
    """Connected to Ray; yields the dashboard's address. A cluster that was started here ends with the block."""
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    _require_cluster(address)
    try:
        context = ray.init(address=address, namespace="serve", log_to_driver=False, logging_level="error")
    except ConnectionError as exc:
        raise ConfigError(
            f"the Ray cluster at '{address}' lets nobody in: check that it runs and that its token is the one here"
        ) from exc
    try:
        say(f"Ray is up at {context.address_info['gcs_address']}")
        yield context.dashboard_url or None
    finally:
        with _quiet():
            ray.shutdown()


def _require_cluster(address: str | None) -> None:
    """Refuse a `host:port` where nothing listens at once: Ray itself tries for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or not port.isdigit() or "://" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as exc:
        raise ConfigError(f"no Ray cluster answers at '{address}': start one, or leave --address out") from exc


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray's prints away: it reports the actors that a shutdown ends as failures."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


@contextmanager
def _serve(values: dict[str, Any], host: str, port: int) -> Iterator[None]:
    """Serve's controller and proxy run. Refuses a cluster that serves something else already."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    others = set(serve.status().applications)
    if others:
        raise ConfigError(
            f"the Ray cluster found here already serves {', '.join(sorted(others))}: change it with `serve deploy`, "
            "or start a cluster of its own with `serve-app up --address local` (make up ADDRESS=local)"
        )
    http = {**(values.get("http_options") or {}), "host": host, "port": port}
    serve.start(proxy_location=values.get("proxy_location", "HeadOnly"), http_options=http)
    try:
        yield
    finally:
        with _quiet():
            serve.shutdown()


def _deploy(values: dict[str, Any], say: Say) -> dict[str, str]:
    """Deploy every application and wait until each runs or has failed. Returns the failures' reasons by name."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    client = _get_global_client()
    assert client is not None, "Serve was started above"
    client.deploy_apps(ServeDeploySchema.model_validate(values))  # what `serve run FILE` does
    shown: dict[str, str] = {}
    failures: dict[str, str] = {}
    names = [app["name"] for app in values["applications"]]
    while set(shown.values()) - {"RUNNING", "DEPLOY_FAILED"} or len(shown) < len(names):
        for name, overview in serve.status().applications.items():
            state = overview.status.value
            if name in names and shown.get(name) != state:
                shown[name] = state
                say(f"{name}: {state.lower().replace('_', ' ')}")
            if state == "DEPLOY_FAILED":
                messages = [d.message for d in overview.deployments.values() if d.message] or [overview.message]
                failures[name] = last_line(messages[0])
        time.sleep(POLL_S)
    return failures


def _wait_for_http(url: str, failures: dict[str, str], timeout_s: float = 60.0) -> None:
    """Until the ingress says ready; with a failed application, until it answers at all."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            status = httpx.get(f"{url}/ready", timeout=5, trust_env=False).status_code
        except httpx.TransportError:
            status = 0
        if status == 200 or (failures and status == 503):
            return
        time.sleep(POLL_S)
    raise ConfigError(f"{url}/ready didn't answer within {timeout_s:.0f} s: see Ray's dashboard or logs")

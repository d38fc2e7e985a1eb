"""A service from a config file: Ray found or started, Serve on it, applications deployed, and all of it ended again.

Used by `serve-app up` on one machine. On a cluster `serve deploy` or KubeRay do this from the same file.
"""

import io
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import httpx

from serve_app.config.applications import IngressConfig
from serve_app.config.file import takes
from serve_app.errors import ConfigError
from serve_app.models.serve_states import last_line, num_serving

Say = Callable[[str], None]

POLL_S = 0.25
LOOK_FOR_ROOM_S = 2.0
NUM_LOOKS_TO_REST = 3  # a replica that ended may still be giving its room back
LANE_TIMEOUT_S = 5.0
NUM_LOOKS_AT_NOTHING = 3  # an answer's last bytes may still be on their way through the proxy


@dataclass(frozen=True, slots=True)
class Service:
    """A deployed service: where it listens, why applications failed, and why others wait for room on a node."""

    url: str
    dashboard_url: str | None
    failures: dict[str, str]
    pending: dict[str, str]


@contextmanager
def running(values: dict[str, Any], address: str | None, say: Say) -> Iterator[Service]:
    """Serve the config inside the `with`. Everything that was started here is ended at its end.

    `address` is Ray's: None joins a cluster that runs on this machine or starts one, `local` always starts one.
    Raises `ConfigError` where the port is taken or the cluster serves something else.
    """
    http = values.get("http_options") or {}
    host, port = http.get("host", "127.0.0.1"), int(http.get("port", 8000))
    _require_free_port(host, port)
    with connected(address) as context, _serve(values, host, port):
        say(f"Ray is up at {context.address_info['gcs_address']}")
        failures, pending = _deploy(values, say)
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        _wait_for_http(url, is_whole=not failures and not pending)
        yield Service(url, context.dashboard_url or None, failures, pending)


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
def connected(address: str | None) -> Iterator[Any]:
    """Connected to Ray; yields Ray's context. A cluster that was started here ends with the block.

    `address` as in `running`; `auto` joins a cluster and never starts one. Raises `ConfigError`.
    """
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    _require_cluster(os.environ.get("RAY_ADDRESS") if address == "auto" else address)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        context = ray.init(address=address, namespace="serve", log_to_driver=False, logging_level="error")
    except ConnectionError as exc:
        if _is_unauthenticated(exc):
            which = "of this machine" if address == "auto" else f"at '{address}'"
            raise ConfigError(
                f"the Ray cluster {which} refuses this token: bring its ~/.ray/auth_token here, or set "
                "RAY_AUTH_TOKEN, and RAY_AUTH_MODE=token"
            ) from exc
        if address == "auto":
            raise ConfigError("no Ray cluster runs on this machine: start one, or name one with --address") from exc
        raise ConfigError(
            f"the Ray cluster at '{address}' lets nobody in: check that it runs and that its token is the one here"
        ) from exc
    except Exception as exc:  # a bare one is what Ray raises where its processes don't come up in time
        raise ConfigError(
            f"Ray didn't start ({last_line(str(exc))}): free processors or memory here and try again; what its "
            "processes said stands in session_latest/logs of its folder (RAY_TMPDIR, or /tmp/ray)"
        ) from exc
    for number, handler in handlers.items():  # Ray has put its own in their place, which abort this process
        signal.signal(number, handler)
    try:
        yield context
    finally:
        with _quiet():
            ray.shutdown()


def _is_unauthenticated(error: BaseException | None) -> bool:
    """Whether a cluster refused the token. Ray says so only in the texts of the errors that caused its own."""
    while error is not None:
        if "InvalidAuthToken" in str(error) or "AuthenticationError" in str(error):
            return True
        error = error.__cause__
    return False


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
    """Hide Ray's prints: it reports the actors that a shutdown ends as failures."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


@contextmanager
def _serve(values: dict[str, Any], host: str, port: int) -> Iterator[None]:
    """Serve's controller and proxy run. Raises `ConfigError` for a cluster that serves something else."""
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


def _deploy(values: dict[str, Any], say: Say) -> tuple[dict[str, str], dict[str, str]]:
    """Deploy every application and wait until each runs, has failed, or waits for room while nothing else moves.

    Returns the reasons of the failures and of those that wait, by name. Raises `ConfigError` where a front finds no
    room, without which nothing can be asked.
    """
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    client = _get_global_client()
    assert client is not None, "Serve was started above"
    client.deploy_apps(ServeDeploySchema.model_validate(values))  # what `serve run FILE` does
    states = dict.fromkeys((app["name"] for app in values["applications"]), "")
    failures: dict[str, str] = {}
    waiting = _Waiting(say)
    while not waiting.is_at_rest(states):
        for name, overview in serve.status().applications.items():
            state = overview.status.value
            if name in states and states[name] != state:
                states[name] = state
                say(f"{name}: {state.lower().replace('_', ' ')}")
            if state == "DEPLOY_FAILED":
                messages = [d.message for d in overview.deployments.values() if d.message] or [overview.message]
                failures[name] = last_line(messages[0])
        waiting.look()
        time.sleep(POLL_S)
    pending = {name: why for name, why in waiting.reasons.items() if states.get(name) == "DEPLOYING"}
    for app in values["applications"]:
        if app["name"] in pending and takes(app, IngressConfig):
            raise ConfigError(f"application '{app['name']}' {pending[app['name']]}")
    return failures, pending


class _Waiting:
    """Which applications wait for room on a node. Reports each change once."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._looked_at = float("-inf")
        self._reported: dict[str, str] = {}
        self._num_looks: dict[str, int] = {}
        self.reasons: dict[str, str] = {}

    def look(self) -> None:
        """Ask the cluster, at most every `LOOK_FOR_ROOM_S`."""
        from serve_app.placement import cluster

        if time.monotonic() - self._looked_at < LOOK_FOR_ROOM_S:
            return
        self._looked_at = time.monotonic()
        self.reasons = cluster.unplaced()
        self._num_looks = {name: self._num_looks.get(name, 0) + 1 for name in self.reasons}
        for name, why in self.reasons.items():
            if self._reported.get(name) != why:
                self._say(f"{name}: pending: it {why}")
        self._reported.update(self.reasons)

    def is_at_rest(self, states: dict[str, str]) -> bool:
        """Whether every application has come to rest; one that waits has, after `NUM_LOOKS_TO_REST` looks."""
        moving = [name for name, state in states.items() if state not in ("RUNNING", "DEPLOY_FAILED")]
        return all(self._num_looks.get(name, 0) >= NUM_LOOKS_TO_REST for name in moving)


def drain(timeout_s: float) -> int:
    """Have every lane refuse new requests, and wait for those that run; how many hadn't ended after `timeout_s`."""
    from ray.exceptions import RayError

    from serve_app.placement import cluster

    deadline = time.monotonic() + timeout_s
    num_looks = num_running = 0
    while num_looks < NUM_LOOKS_AT_NOTHING and time.monotonic() < deadline:
        try:
            num_running = sum(_refuse_new(name) for name in _answering(cluster.overviews()))
        except RayError:  # Serve's controller is away, and comes back
            num_running = 1
        num_looks = 0 if num_running else num_looks + 1
        time.sleep(POLL_S)
    return num_running


def _answering(applications: dict[str, Any]) -> list[str]:
    """The applications whose processes answer clients now: an ingress or a model with replicas that run."""
    lanes = {"Ingress", "Model"}
    return [name for name, app in applications.items() if lanes & app.deployments.keys() and num_serving(app)]


def _refuse_new(application: str) -> int:
    """How many requests run in the application's processes, which from now on refuse new ones.

    A process that doesn't answer in time counts as one request.
    """
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        handle = serve.get_app_handle(application)
        # With RAY_SERVE_THROUGHPUT_OPTIMIZED it would run on this thread's event loop, and here is none.
        if not handle.is_initialized:
            handle._init(_run_router_in_separate_loop=True)
        answers = handle.broadcast("refuse_new").results(timeout_s=LANE_TIMEOUT_S, return_exceptions=True)
    except TimeoutError:
        return 1
    except (RayError, RayServeException):  # it has no replica any more
        return 0
    return sum(answer if isinstance(answer, int) else isinstance(answer, TimeoutError) for answer in answers)


def lets_anyone_in(url: str) -> bool:
    """Whether the service answers those without a key."""
    return httpx.get(f"{url}/v1/models", timeout=10, trust_env=False).status_code == 200


def _wait_for_http(url: str, is_whole: bool, timeout_s: float = 60.0) -> None:
    """Until the ingress says that every model is ready; where one is missing, until it answers at all."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            status = httpx.get(f"{url}/ready?all=1", timeout=5, trust_env=False).status_code
        except httpx.TransportError:
            status = 0
        if status == 200 or (not is_whole and status == 503):
            return
        time.sleep(POLL_S)
    raise ConfigError(f"{url}/ready didn't answer within {timeout_s:.0f} s: see Ray's dashboard or logs")

"""The real HAProxy, started by our launcher on a configuration that Ray Serve makes, before servers that echo."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx

from serve_app.exchange.lane_secret import LANES_PATH, SECRET_HEADER, SECRET_VARIABLE
from tests.service import free_port

NO_OTHERS: Mapping[str, int] = {}
START = "from serve_app.haproxy.launcher import main; main()"


@dataclass
class Backend:
    """A server that answers with its name and what it was sent. The ingress's also has a table of lanes."""

    name: str
    table: str | None = None
    num_requests: int = 0
    port: int = 0
    is_healthy: bool = True
    secrets: list[str] = field(default_factory=list)
    left: Event = field(default_factory=Event)  # set when the client of a request with `x-hold` has gone
    held: list[socket.socket] = field(default_factory=list)
    server: ThreadingHTTPServer | None = None

    def die(self) -> None:
        """As a killed process: its connections end, and no new one is taken."""
        assert self.server is not None, "it listens"
        self.server.shutdown()
        self.server.server_close()
        for connection in self.held:
            connection.shutdown(socket.SHUT_RDWR)

    def answer(self, handler: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        if handler.path == "/-/healthz":
            return (200 if self.is_healthy else 503), b"success"
        if self.table is not None and handler.path == LANES_PATH and SECRET_HEADER in handler.headers:
            self.secrets.append(handler.headers[SECRET_HEADER])
            return 200, self.table.encode()
        self.num_requests += 1
        body = _body(handler)
        if "x-hold" in handler.headers:
            self._wait_for_leaving(handler)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        told = {"by": self.name, "path": handler.path, "headers": headers, "num_bytes": len(body)}
        return 200, json.dumps(told).encode()

    def _wait_for_leaving(self, handler: BaseHTTPRequestHandler) -> None:
        handler.connection.settimeout(20)
        self.held.append(handler.connection)
        try:
            is_gone = not handler.connection.recv(1)
        except TimeoutError:
            is_gone = False
        except ConnectionError:
            is_gone = True
        if is_gone:
            self.left.set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        backend = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _reply(self) -> None:
                status, data = backend.answer(self)
                with suppress(ConnectionError):  # a health check hangs up once it has the status
                    head = f"HTTP/1.1 {status} So\r\ncontent-length: {len(data)}\r\n\r\n"
                    self.wfile.write(head.encode() + data)

            do_GET = do_POST = _reply

            def handle(self) -> None:
                with suppress(ConnectionError):
                    super().handle()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.port = server.server_address[1]
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("transfer-encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("content-length", 0)))
    body = b""
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body


@dataclass
class Front:
    """A running HAProxy and what stands behind it."""

    port: int
    ingress: Backend
    models: dict[str, Backend]
    process: "subprocess.Popen[bytes]"
    stderr: Path
    config: Path

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30, trust_env=False)

    def asked(self, path: str, **request: Any) -> dict[str, Any]:
        """What the server that a `POST` reached was sent."""
        with self.client as client:
            told: dict[str, Any] = client.post(path, **request).json()
        return told

    def show(self, table: str) -> None:
        """The ingress has this table from now on; returns once HAProxy has asked for it."""
        self.ingress.table = table
        num_asked, deadline = len(self.ingress.secrets), time.monotonic() + 20
        while len(self.ingress.secrets) < num_asked + 2:  # the first answer may have been on its way
            assert time.monotonic() < deadline, "HAProxy didn't ask for the lanes"
            time.sleep(0.02)


@contextmanager
def started(
    models: dict[str, str], env: dict[str, str] | None = None, num_replicas: Mapping[str, int] = NO_OTHERS
) -> Iterator[Front]:
    """HAProxy before an ingress at `/` and these models, by their route prefixes.

    Each replica is an echoing server: one for a model, called as it is, or as many as `num_replicas` says, with
    their number behind the name.
    """
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sa-", dir="/tmp")))
        names = {name: _replica_names(name, num_replicas.get(name, 1)) for name in models}
        backends = {replica: Backend(replica) for replicas in names.values() for replica in replicas}
        ingress = Backend("ingress", table="")
        for backend in (ingress, *backends.values()):
            stack.enter_context(backend.listening())
        port = free_port()
        config = HAProxyConfig(
            socket_path=str(folder / "admin.sock"),
            server_state_base=str(folder),
            server_state_file=str(folder / "state"),
            stats_port=free_port(),
            metrics_port=free_port(),
            metrics_socket_path=str(folder / "metrics.sock"),
            http_options=HTTPOptions(host="127.0.0.1", port=port),
            has_received_routes=True,
            has_received_servers=True,
        )
        named = [("ingress", "/", [ingress])]
        named += [(name, prefix, [backends[replica] for replica in names[name]]) for name, prefix in models.items()]
        api = HAProxyApi(
            config,
            {
                f"http-{name}": BackendConfig(
                    name=f"http-{safe_name(name)}",
                    path_prefix=prefix,
                    app_name=name,
                    servers=[
                        ServerConfig(f"SERVE_REPLICA::{safe_name(replica.name)}", "127.0.0.1", replica.port)
                        for replica in replicas
                    ],
                    fallback_server=ServerConfig("SERVE_PROXY_ACTOR-x", "127.0.0.1", ingress.port),
                )
                for name, prefix, replicas in named
            },
            config_file_path=str(folder / "haproxy.cfg"),
        )
        (folder / "state").touch()
        api._generate_config_file_internal()
        stderr = folder / "stderr.log"
        log = stack.enter_context(stderr.open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-c", START, "-db", "-f", str(folder / "haproxy.cfg"), "-dR"],
            env=os.environ
            | {"RAY_SERVE_HAPROXY_BINARY_PATH": sys.executable, SECRET_VARIABLE: "shared by our processes"}
            | (env or {}),
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        stack.callback(_end, process)
        front = Front(port, ingress, backends, process, stderr, folder / "haproxy.cfg")
        _wait(front)
        yield front


def _replica_names(model: str, count: int) -> list[str]:
    return [model] if count == 1 else [f"{model}{number}" for number in range(count)]


def safe_name(name: str) -> str:
    from ray.serve._private.haproxy import HAProxyManager

    return str(HAProxyManager.get_safe_name(name))


def _wait(front: Front) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert front.process.poll() is None, front.stderr.read_text()
        try:
            if front.asked("/x")["by"] == "ingress":
                return
        except (httpx.TransportError, ValueError):
            pass
        time.sleep(0.05)
    raise AssertionError(front.stderr.read_text())


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait(10)

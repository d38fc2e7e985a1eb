"""A model hub on loopback, for what the real one can't be made to do: the few routes that a download asks for."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_REVISIONS = ("main", COMMIT)


@dataclass
class FakeHub:
    """`files` by model and name. `refusals` answers a question about a model with a status and an error code."""

    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    seconds_per_file: float = 0.0
    url: str = ""
    downloaded: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    class Handler(_Handler):
        fake = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.fake.tokens.add(self.headers.get("authorization", ""))
        path = urlsplit(self.path).path.strip("/")
        if path.startswith("api/models/"):
            self._metadata(path.removeprefix("api/models/"))
        else:
            self._file(path)

    do_HEAD = do_GET

    def _metadata(self, path: str) -> None:
        model = "/".join(path.split("/")[:2])
        _, _, rest = path.partition(f"{model}/")
        kind, _, revision = rest.partition("/")
        if model in self.fake.refusals:
            self._refuse(*self.fake.refusals[model])
        elif model not in self.fake.files:
            self._refuse(404, "RepoNotFound")
        elif revision and revision not in _REVISIONS:
            self._refuse(404, "RevisionNotFound")
        elif kind == "tree":
            self._json([_tree_entry(name, data) for name, data in self.fake.files[model].items()])
        else:
            siblings = [{"rfilename": name, "size": len(data)} for name, data in self.fake.files[model].items()]
            self._json({"id": model, "sha": COMMIT, "siblings": siblings})

    def _file(self, path: str) -> None:
        model, _, rest = path.partition("/resolve/")
        name = rest.partition("/")[2]
        if model in self.fake.gated:
            self._refuse(403, "GatedRepo")
        elif name not in self.fake.files.get(model, {}):
            self._refuse(404, "EntryNotFound")
        else:
            self._bytes(self.fake.files[model][name], name)

    def _bytes(self, data: bytes, name: str) -> None:
        self.send_response(200)
        for key, value in (
            ("ETag", f'"{hash(data):x}"'),
            ("X-Repo-Commit", COMMIT),
            ("Content-Length", str(len(data))),
        ):
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.fake.downloaded.append(name)
            time.sleep(self.fake.seconds_per_file)
            self.wfile.write(data)

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing on the tests' output."""


def _tree_entry(name: str, data: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(data), "oid": f"{hash(data):x}"}

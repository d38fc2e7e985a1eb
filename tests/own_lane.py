"""A model's direct lane in this very process: the real HTTP app over a real replica, without Ray.

It is put together as `app.py` does it, over the scripted engine or another, and served by uvicorn with httptools, as
Ray Serve serves it, on a thread and a port of its own.
"""

import asyncio
import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
import yaml
from prometheus_client import CollectorRegistry

from serve_app.access.admission import Admission
from serve_app.access.budget import Budget
from serve_app.access.keys import Key, Keyring
from serve_app.access.running import Running
from serve_app.config.applications import ModelConfig
from serve_app.config.http import HttpConfig, KeysConfig
from serve_app.engines.choice import create_engine
from serve_app.exchange.lane import Lane
from serve_app.images.gate import ImageGate
from serve_app.ingress.app import create_app
from serve_app.metrics.registry import Metrics
from serve_app.models.entry import num_places
from serve_app.models.single_model import SingleModelCatalog
from serve_app.replica.replica import Replica
from tests.page_check import PageCheck

MODEL = "script"
CONTEXT_TOKENS = 1000
MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_IMAGES = 300_000, 8_000, 3
KEYS: Mapping[str, Mapping[str, Any]] = {
    "all": {},
    "elsewhere": {"models": ["another"]},
    "spent": {"requests_per_minute": 1},
    "blind": {"images_per_minute": 1},
    "steady": {"requests_per_minute": 60},
}
START_TIMEOUT_S = 300.0  # transformers takes its time to be imported, and vLLM three times as much


def scripted(**more: Any) -> ModelConfig:
    script = {"tokens_per_s": 0, "context_length": CONTEXT_TOKENS}
    return ModelConfig(source="none", engine="scripted", engine_args=script, **more)


SCRIPTED = scripted()


def bearer(name: str) -> dict[str, str]:
    """The headers of the client with that name in `KEYS`."""
    return {"authorization": f"Bearer sa-{name}"}


def as_bytes(headers: Mapping[str, str | bytes]) -> dict[bytes, bytes]:
    """Headers as httpx takes them where a value is no ASCII."""
    return {k.encode(): v if isinstance(v, bytes) else v.encode() for k, v in headers.items()}


def echo(text: str, **fields: Any) -> dict[str, Any]:
    """The body of a chat request that the scripted engine answers with `text`."""
    return {"model": MODEL, "messages": [{"role": "user", "content": f"!echo {text}"}]} | fields


def write_keys(path: Path) -> None:
    entries = [
        {"name": name, "sha256": hashlib.sha256(f"sa-{name}".encode()).hexdigest(), **limits}
        for name, limits in KEYS.items()
    ]
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump({"keys": entries}))


@contextmanager
def own_lane(folder: Path, model: ModelConfig | None = None, **http: Any) -> Iterator[httpx.URL]:
    """The lane's address while the block runs. It keeps its file of keys in `folder`; `http` are further limits.

    `model` stands in the scripted one's place, under the same name. Every answer is held against the lane's own page.
    """
    not_on_page: list[str] = []
    write_keys(folder / "keys.yaml")
    config = uvicorn.Config(_nothing, port=0, http="httptools", log_level="critical", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(
        target=lambda: asyncio.run(_serve(server, folder / "keys.yaml", model or SCRIPTED, http, not_on_page))
    )
    thread.start()
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not server.started:
            assert thread.is_alive(), "the lane couldn't start"
            assert time.monotonic() < deadline, "the lane didn't start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield httpx.URL(f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()
    assert not not_on_page, "\n".join(dict.fromkeys(not_on_page))


@contextmanager
def lane_client(folder: Path, model: ModelConfig | None = None) -> Iterator[httpx.Client]:
    """A client with the key of all rights at a lane of its own."""
    with (
        own_lane(folder, model) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60, headers=bearer("all")) as client,
    ):
        yield client


async def _serve(
    server: uvicorn.Server, keys_file: Path, model: ModelConfig, http: dict[str, Any], not_on_page: list[str]
) -> None:
    """All on one event loop, as in a replica: an engine belongs to the loop that it was started on."""
    metrics = Metrics(CollectorRegistry(), [MODEL])
    replica = Replica(MODEL, model, create_engine(model), metrics)
    await replica.start()
    try:
        server.config.app = PageCheck(_lane_app(replica, metrics, keys_file, model, http), not_on_page)
        await server.serve()
    finally:
        await replica.stop()


def _lane_app(replica: Replica, metrics: Metrics, keys_file: Path, model: ModelConfig, more: dict[str, Any]) -> Any:
    limits = {
        "keys": KeysConfig(file=str(keys_file)),
        "max_body_bytes": MAX_BODY_BYTES,
        "max_header_bytes": MAX_HEADER_BYTES,
        "max_images_per_request": MAX_IMAGES,
    }
    http = HttpConfig(**{**limits, **more})
    places = min(num_places(replica.describe().num_at_once or 1, num_replicas=1), model.ongoing_limit)
    lane = Lane(
        config=http,
        catalog=SingleModelCatalog(MODEL, replica.describe()),
        handle=replica,
        images=ImageGate(http.images),
        metrics=metrics,
        keys=Keyring(http.keys),
        budget=Budget(),
        admission=Admission(http.admission, lambda _: places, watcher=metrics),
        running=Running(),
        cancel_elsewhere=nobody_else,
        heed_others=nothing_to_heed,
    )
    return create_app(lane)


async def _nothing(*_: Any) -> None:
    raise AssertionError("the app takes its place before the server starts")


async def nobody_else(request_id: str, key: Key | None) -> bool:
    return False


async def nothing_to_heed() -> None:
    return None

"""One service with a good model and bad ones: each bad one fails alone, and says what is wrong and what to change."""

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.app import build_model
from tests.checkpoint_folders import BROKEN, broken
from tests.matrix.remote_code import build_remote_vlm
from tests.service import RunningService, serving
from tests.tiny_models import build_llama

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]  # eight models fail before the first test

__all__ = ["build_model"]  # for an application that `serve-app up` doesn't check, as `serve deploy` doesn't

# What each model's sentence says after its name.
SENTENCES = {
    "missing": "source '/no/such/folder': there is no folder /no/such/folder; correct the path or name a hub id",
    "cut": BROKEN["cut data"][2],
    "empty": BROKEN["no weights"][2],
    "unserved": "has an architecture that this engine doesn't know",
    "untrusted": "trust_remote_code: true",
    "unheard-of": "source 'nobody/no-such-model'.*HF_HUB_OFFLINE",
    "warm-up": "its warm-up request failed .* context length is 3 tokens.*, or set warm_up: false",
    "typo": "dtype: .*'float32', 'bfloat16' or 'float16'$",
}


def application(name: str, **args: Any) -> dict[str, Any]:
    builder = "tests.checkpoints.test_load_failures:build_model" if name == "typo" else "serve_app.app:build_model"
    args = {"num_cpus": 0.1, "start_attempts": 1, **args}
    return {"name": name, "import_path": builder, "route_prefix": None, "args": args}


def _unserved(folder: Path) -> Path:
    build_llama(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["NobodyForCausalLM"], "model_type": "nobody"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def config(folder: Path) -> dict[str, Any]:
    script = {"source": "none", "engine": "scripted"}
    models = [
        application("demo", source="demo", engine="transformers"),
        application("missing", source="/no/such/folder", start_attempts=3),
        application("cut", source=str(broken("cut data", folder / "cut"))),
        application("empty", source=str(broken("no weights", folder / "empty"))),
        application("unserved", source=str(_unserved(folder / "unserved"))),
        application("untrusted", source=str(build_remote_vlm(folder / "untrusted"))),
        application("unheard-of", source="nobody/no-such-model", env={"HF_HUB_OFFLINE": "1"}),
        application("warm-up", **script, warm_up=True, engine_args={"context_length": 3}),
        application("typo", source="demo", dtype="flaot32"),
        application(
            "lazy", **script, engine_args={"start_s": 3600}, drain_timeout_s=0,
            autoscaling={"min_replicas": 0, "upscale_delay_s": 0},
        ),
    ]  # fmt: skip
    ingress = {
        "name": "ingress", "import_path": "serve_app.app:build_ingress", "route_prefix": "/",
        "args": {"num_cpus": 0.1},
        "deployments": [{"name": "Ingress", "user_config": {"models": [m["name"] for m in models]}}],
    }  # fmt: skip
    metrics = {
        "name": "metrics",
        "import_path": "serve_app.app:build_metrics",
        "route_prefix": "/metrics",
        "args": {},
    }
    return {"proxy_location": "HeadOnly", "applications": [*models, ingress, metrics]}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with serving(config(tmp_path_factory.mktemp("models"))) as running:
        yield running


def chat(service: RunningService, model: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Who are you?"}]}
    with service.client as client:
        return client.post("/v1/chat/completions", json=body)


def entry(service: RunningService, model: str) -> dict[str, Any]:
    with service.client as client:
        found: dict[str, Any] = client.get(f"/v1/models/{model}").json()
    return found


def settled(service: RunningService, model: str) -> dict[str, Any]:
    """The model's entry, once it neither loads nor waits: the catalog looks once a second."""
    deadline = time.monotonic() + 60
    while (told := entry(service, model))["state"] in ("loading", "pending") and time.monotonic() < deadline:
        time.sleep(0.1)
    return told


def test_the_good_model_answers(mixed: RunningService) -> None:
    told = settled(mixed, "demo")
    assert told["state"] == "ready", told["reason"]
    assert "demo model of serve_app" in chat(mixed, "demo").json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("model", SENTENCES)
def test_a_bad_model_fails_alone_and_says_why(mixed: RunningService, model: str) -> None:
    told = settled(mixed, model)
    assert told["state"] == "failed"
    assert re.search(f"^model '{model}': .*{SENTENCES[model]}", told["reason"]), told["reason"]
    answer = chat(mixed, model)
    assert answer.status_code == 503
    assert re.search(f"^model '{model}' failed to start: .*{SENTENCES[model]}", answer.json()["error"]["message"])
    sentence = told["reason"].removeprefix(f"model '{model}': ")
    assert re.search(f"FAILED {model}: .*{re.escape(sentence)}", (mixed.temp_dir / "up.log").read_text())


def test_a_model_that_loads_says_what_it_does(mixed: RunningService) -> None:
    """It is scaled to zero, and never ready: a request wakes it and is given up when enough was seen."""
    assert settled(mixed, "lazy")["state"] == "scaled_to_zero"
    address = httpx.URL(mixed.url)
    body = json.dumps({"model": "lazy", "messages": [{"role": "user", "content": "wake up"}]})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    deadline, told = time.monotonic() + 60, entry(mixed, "lazy")
    with socket.create_connection((address.host, address.port or 80)) as waiting:
        waiting.sendall(f"{head}{body}".encode())
        while told.get("reason") != "loading the script" and time.monotonic() < deadline:
            time.sleep(0.1)
            told = entry(mixed, "lazy")
    assert (told["state"], told.get("reason")) == ("loading", "loading the script")

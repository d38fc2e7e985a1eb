"""`serve-app models`, `serve-app status`, and what all commands share: help, start-up, addresses, errors."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.responses import JSONResponse

from tests import own_answers
from tests.cli_fake import FakeApi, failure, free_port, run, serving

MODELS = own_answers.models()


@pytest.fixture
def api() -> FakeApi:
    api = FakeApi()
    healthy = JSONResponse({"status": "ok"})
    api.gets = {"/v1/models": JSONResponse(MODELS), "/health": healthy, "/ready": healthy,
                "/metrics/summary": JSONResponse(own_answers.summary())}  # fmt: skip
    return api


@pytest.fixture
def url(api: FakeApi) -> Iterator[str]:
    with serving(api) as url:
        yield url


def test_models(url: str, tmp_path: Path) -> None:
    text = run("models", url=url, cwd=tmp_path).stdout.decode()
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["demo", "ready", "chat,", "caption", "transformers", "4,096"],
        ["big", "pending:", "no", "node", "has", "8", "GPUs", "chat"],
    ]
    assert json.loads(run("models", "--json", url=url, cwd=tmp_path).stdout) == MODELS


def test_status(url: str, tmp_path: Path) -> None:
    done = run("status", url=url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "healthy, ready"
    assert lines[3].split() == ["demo", "ready", "1,200", "3", "500.0", "65", "ms", "1.47", "s", "3", "4"]
    seen = json.loads(run("status", "--json", url=url, cwd=tmp_path).stdout)
    assert "big, pending: no node has 8 GPUs" in lines
    assert (seen["ready"], seen["metrics"]["models"]["demo"]["queued"]) == (True, 4)


def test_status_without_numbers_or_readiness(api: FakeApi, url: str, tmp_path: Path) -> None:
    del api.gets["/metrics/summary"]
    api.gets["/ready"] = failure(503, "model_not_ready", "no model is ready: wait")
    done = run("status", url=url, cwd=tmp_path)
    text = done.stdout.decode()
    assert done.returncode == 1
    assert "healthy, not ready" in text
    assert "no model is ready: wait" in text
    assert "the metrics application isn't running" in text


def test_status_says_what_the_ingress_refused(api: FakeApi, url: str, tmp_path: Path) -> None:
    api.gets["/v1/models"] = JSONResponse(MODELS | {"refused_config": "aliases: 'vlm' leads to 'x'"})
    text = " ".join(run("status", url=url, cwd=tmp_path).stdout.decode().split())
    assert "keeps its last user_config, the newest is refused: aliases: 'vlm' leads to 'x'" in text


@pytest.mark.parametrize("arguments", [["models"], ["status"], ["chat", "hi"], ["caption", "."]])
def test_no_service(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "a.jpg").touch()
    done = run(*arguments, url=f"http://127.0.0.1:{free_port()}", cwd=tmp_path)
    assert done.returncode == 3
    assert "start one with `serve-app up` or pass --url" in done.stderr.decode()


def test_another_server(api: FakeApi, url: str, tmp_path: Path) -> None:
    api.gets["/v1/models"] = JSONResponse(["not", "ours"])
    done = run("models", url=url, cwd=tmp_path)
    assert done.returncode == 1
    assert "doesn't answer like a serve_app service" in done.stderr.decode()


@pytest.mark.parametrize("name", ["key", "caption", "chat", "models", "status"])
def test_help_has_an_example(tmp_path: Path, name: str) -> None:
    text = run(name, "--help", url="http://x", cwd=tmp_path).stdout.decode()
    assert text.count(f" serve-app {name}") > 1  # the usage line is one


def test_help_imports_nothing_heavy() -> None:
    heavy = ("ray", "torch", "transformers", "httpx", "pydantic", "starlette", "PIL")
    code = f"import sys, serve_app.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"

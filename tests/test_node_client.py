"""Hugging Face's client for Node, `@huggingface/inference`, a new one and an old one, against the demo model."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.own_lane import bearer

HERE = Path(__file__).parent / "node"
TIMEOUT_S = 300


@pytest.fixture(scope="module")
def told(demo_lane: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the client was answered, see ask.mjs."""
    if not shutil.which("npm"):
        pytest.skip("no Node here: install nodejs and npm")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "ask.mjs"):
        shutil.copy(HERE / name, folder)
    installed = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    if installed.returncode:
        pytest.skip(f"@huggingface/inference can't be installed here: {installed.stderr[-300:]}")
    key = bearer("all")["authorization"].removeprefix("Bearer ")
    environment = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
    done = subprocess.run(
        ["node", "ask.mjs", demo_lane, key],
        cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("version", ["new", "old"])
def test_it_generates(told: dict[str, Any], version: str) -> None:
    whole = told[version]["whole"]["generated_text"]
    assert "demo model" in whole
    if version == "new":  # completions
        assert "".join(piece["choices"][0]["text"] for piece in told["new"]["pieces"]) == whole
        return
    *_, last = told["old"]["pieces"]
    assert last["generated_text"] == whole
    tokens = [piece["token"] for piece in told["old"]["pieces"]]
    assert "".join(token["text"] for token in tokens if not token["special"]) == whole


@pytest.mark.parametrize("version", ["new", "old"])
def test_it_chats(told: dict[str, Any], version: str) -> None:
    said = told[version]["chat"]["choices"][0]["message"]["content"]
    assert "demo model" in said
    deltas = [c["delta"].get("content") or "" for piece in told[version]["deltas"] for c in piece["choices"]]
    assert "".join(deltas) == said
    assert len(deltas) > 3


@pytest.mark.parametrize("version", ["new", "old"])
def test_it_is_told_what_is_wrong(told: dict[str, Any], version: str) -> None:
    assert "temperature" in told[version]["refusal"]

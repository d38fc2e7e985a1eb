"""Hugging Face's client for Node, `@huggingface/inference`, a new one and an old one, against the demo model."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.drawings import data_uri, png, says
from tests.own_lane import bearer

NEW, OLD = "@huggingface/inference 4", "@huggingface/inference 2"
HERE = Path(__file__).parent.parent.parent / "node"
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
        ["node", "ask.mjs", demo_lane, key, data_uri(png("red", "circle"))],
        cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


@pytest.mark.client(NEW, "text generation")
@pytest.mark.client(NEW, "text generation, streamed")
@pytest.mark.client(OLD, "text generation")
@pytest.mark.client(OLD, "text generation, streamed")
@pytest.mark.client(OLD, "details of tokens")
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


@pytest.mark.client(NEW, "chat")
@pytest.mark.client(NEW, "chat, streamed")
@pytest.mark.client(NEW, "an image in a chat")
@pytest.mark.client(OLD, "chat")
@pytest.mark.client(OLD, "chat, streamed")
@pytest.mark.client(OLD, "an image in a chat")
@pytest.mark.parametrize("version", ["new", "old"])
def test_it_chats(told: dict[str, Any], version: str) -> None:
    said = told[version]["chat"]["choices"][0]["message"]["content"]
    assert "demo model" in said
    deltas = [c["delta"].get("content") or "" for piece in told[version]["deltas"] for c in piece["choices"]]
    assert "".join(deltas) == said
    assert len(deltas) > 3
    assert "red" in told[version]["seen"]["choices"][0]["message"]["content"].lower()


@pytest.mark.client(OLD, "an image in a prompt")
def test_an_image_in_the_prompt_is_seen(told: dict[str, Any]) -> None:
    """As TGI's guide to vision models has it, by the class that it names."""
    assert 1 < len(told["shown"]) <= 16
    assert "red" in "".join(event["token"]["text"] for event in told["shown"]).lower()


@pytest.mark.client(NEW, "an image in a prompt")
def test_an_image_in_the_prompt_of_a_completion_is_seen_alike(told: dict[str, Any]) -> None:
    texts = [choice["text"] for piece in told["completed"] for choice in piece["choices"]]
    assert "".join(texts) == "".join(
        event["token"]["text"] for event in told["shown"] if not event["token"]["special"]
    )


@pytest.mark.client(NEW, "questions about an image")
@pytest.mark.client(NEW, "questions about a document")
@pytest.mark.client(OLD, "questions about an image")
@pytest.mark.client(OLD, "questions about a document")
@pytest.mark.parametrize("version", ["new", "old"])
def test_it_asks_about_an_image(told: dict[str, Any], version: str) -> None:
    answer = told[version]["answer"]
    assert "red" in answer["answer"].lower()
    assert 0 < answer["score"] <= 1
    assert told[version]["document"] == answer
    assert "inputs.image: this looks like text" in told[version]["no_image"]


@pytest.mark.client(OLD, "image-to-text")
def test_the_old_one_has_an_image_captioned(told: dict[str, Any]) -> None:
    assert says(told["old_caption"]["generated_text"], "red", "circle")


@pytest.mark.client(
    NEW,
    "image-to-text",
    refused="it takes one caption for an answer, and huggingface_hub a list of one, as the hub sends it",
)
def test_the_new_one_reads_no_list_of_captions(told: dict[str, Any]) -> None:
    assert "expected {generated_text: string}" in told["new_caption"]


@pytest.mark.client(NEW, "errors in its own classes")
@pytest.mark.client(OLD, "errors in its own classes")
@pytest.mark.parametrize("version", ["new", "old"])
def test_it_is_told_what_is_wrong(told: dict[str, Any], version: str) -> None:
    assert "temperature" in told[version]["refusal"]

"""From a source to a checked folder: folders, a hub on loopback, and one sentence for each failure."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.checkpoints import source
from serve_app.checkpoints.load_progress import to_nobody
from serve_app.config.applications import ModelConfig
from serve_app.demo import CHECKPOINT
from serve_app.errors import ConfigError
from tests.checkpoint_folders import BROKEN, WEIGHTS, adapter, broken, sharded, whole
from tests.fake_hub import COMMIT, FakeHub, serving


def resolve(name: Path | str, **settings: Any) -> Path:
    return source.resolve(ModelConfig(source=str(name), **settings), to_nobody)


# Folders


def test_the_demo_is_in_the_package() -> None:
    assert resolve("demo") == CHECKPOINT


@pytest.mark.parametrize("build", [whole, sharded])
def test_a_whole_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Any) -> None:
    build(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve(tmp_path / "model") == resolve("~/model") == tmp_path / "model"


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_says_what_is_wrong(tmp_path: Path, kind: str) -> None:
    folder = broken(kind, tmp_path / "model")
    with pytest.raises(ConfigError, match=f"^source '{re.escape(str(folder))}'.*{BROKEN[kind][2]}") as raised:
        resolve(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./none", "~/none", "a/b/c", "no such thing", "demo/../x", "ü/b"]
)
def test_what_can_only_be_a_folder_must_be_there(name: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no folder .*; correct the path or name a hub id"):
        resolve(name)


def test_pickles_may_be_trusted(tmp_path: Path) -> None:
    folder = broken("pickles", tmp_path / "model")
    assert resolve(folder, weights_format="any") == folder


def test_adapters(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter")
    assert source.resolve_adapter(str(folder), to_nobody) == folder
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"^adapter .*corrupt or cut short"):
        source.resolve_adapter(str(folder), to_nobody)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"^adapter .*no adapter_model.safetensors"):
        source.resolve_adapter(str(folder), to_nobody)
    with pytest.raises(ConfigError, match=r"^adapter .*no adapter_config.json"):
        source.resolve_adapter(str(whole(tmp_path / "model")), to_nobody)


@pytest.mark.parametrize("revision", [None, "main", COMMIT[:12]])
def test_code_from_a_hub_is_pinned(revision: str | None) -> None:
    config = ModelConfig(source="someone/model", revision=revision, trust_remote_code=True)
    with pytest.raises(ConfigError, match=r"someone/model.*set revision to the commit .* 40 hex digits"):
        source.check(config)
    source.check(config.model_copy(update={"revision": COMMIT}))


def test_code_in_a_folder_needs_no_pin(tmp_path: Path) -> None:
    assert resolve(whole(tmp_path / "model"), trust_remote_code=True)


# A hub: each in a process of its own, because the hub's client reads its environment once


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    whole(tmp_path / "remote")
    files = {path.name: path.read_bytes() for path in (tmp_path / "remote").iterdir()}
    extra = {"pytorch_model.bin": b"p", "onnx/model.onnx": b"o", "a.gguf": b"g", "README.md": b"r", "code.py": b"c"}
    elsewhere = json.dumps({"auto_map": {"AutoModel": "other/code--modeling.Model"}}).encode()
    with serving(FakeHub()) as fake:
        for model in ("tiny/whole", "tiny/gated"):
            fake.files[model] = files | extra
        fake.files["tiny/pickles"] = {"config.json": files["config.json"]} | extra
        fake.files["tiny/elsewhere"] = files | {"tokenizer_config.json": elsewhere}
        fake.files["tiny/cut"] = files | {WEIGHTS: files[WEIGHTS][:-9]}
        fake.gated.add("tiny/gated")
        fake.refusals = {"tiny/private": (401, "RepoNotFound"), "tiny/forbidden": (403, "")}
        yield fake


PROGRAM = """
import json, sys
from serve_app.config.applications import ModelConfig
from serve_app.checkpoints import source
from serve_app.errors import ConfigError
assert not {'torch', 'transformers', 'ray'} & set(sys.modules)
steps, told = [], {}
try:
    told['folder'] = str(source.resolve(ModelConfig.model_validate_json(sys.argv[1]), steps.append))
except ConfigError as exc:
    told['error'] = str(exc)
print(json.dumps(told | {'steps': steps}))
"""


def from_hub(hub: FakeHub, home: Path, model: str, env: dict[str, str] | None = None, **settings: Any) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps({"source": model, **settings})],
        capture_output=True,
        text=True,
        env={
            **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home),
            "HF_TOKEN": "hf_secret", "NO_PROXY": "127.0.0.1", **(env or {}),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "hf_secret" not in done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_hub_id_comes_once_and_then_offline(hub: FakeHub, tmp_path: Path) -> None:
    hub.seconds_per_file = 0.1
    told = from_hub(hub, tmp_path, "tiny/whole")
    assert told["folder"] == str(tmp_path / f"hub/models--tiny--whole/snapshots/{COMMIT}")
    assert sorted(os.listdir(told["folder"])) == ["code.py", "config.json", WEIGHTS]
    assert sorted(hub.downloaded) == ["code.py", "config.json", WEIGHTS]  # not the same weights as .bin, .onnx, .gguf
    assert "Bearer hf_secret" in hub.tokens
    total = sum(len(hub.files["tiny/whole"][name]) for name in hub.downloaded)
    assert told["steps"][0] == "asking the hub"
    assert told["steps"][-1] == f"downloading {total / 1e3:.1f} of {total / 1e3:.1f} kB"
    for env in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, {}):
        assert from_hub(hub, tmp_path, "tiny/whole", env)["folder"] == told["folder"]
    assert len(hub.downloaded) == 3


@pytest.mark.parametrize(
    ("model", "settings", "env", "sentence"),
    [
        ("tiny/gated", {}, {}, "it is gated: accept its terms at http://127.0.0.1:.*/tiny/gated and set HF_TOKEN"),
        ("tiny/unknown", {}, {}, "no such folder here, and the hub at .* has no such model .*correct the name"),
        ("tiny/private", {}, {}, "has no such model or shows it only to others: .*HF_TOKEN"),
        ("tiny/forbidden", {}, {}, "has no such model or shows it only to others: .*HF_TOKEN"),
        ("tiny/whole", {"revision": "v9"}, {}, "has no revision 'v9' of it: correct the revision"),
        ("tiny/pickles", {}, {}, r"no \*.safetensors weights on the hub: .*weights_format: any"),
        ("tiny/cut", {}, {}, "corrupt or cut short"),
        ("tiny/whole", {}, {"HF_HUB_OFFLINE": "1"}, "offline mode finds no whole copy in .*unset HF_HUB_OFFLINE"),
        ("tiny/whole", {}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, "can't be reached .*check the network"),
        (
            "tiny/elsewhere", {"trust_remote_code": True, "revision": COMMIT}, {},
            "runs code of another repository, other/code, which",
        ),
    ],
)  # fmt: skip
def test_a_hub_that_gives_nothing(
    hub: FakeHub, tmp_path: Path, model: str, settings: dict[str, Any], env: dict[str, str], sentence: str
) -> None:
    told = from_hub(hub, tmp_path, model, env, **settings)
    assert re.search(f"^source '{model}'.*{sentence}", told["error"]), told
    assert "\n" not in told["error"]
    if model == "tiny/pickles":
        assert not hub.downloaded


def test_a_hub_that_refuses_isnt_away(hub: FakeHub, tmp_path: Path) -> None:
    """Its own client would go on with the cache where the key was revoked, as where nobody answers."""
    folder = from_hub(hub, tmp_path, "tiny/whole")["folder"]
    hub.refusals["tiny/whole"] = (503, "")
    away = from_hub(hub, tmp_path, "tiny/whole")
    assert away["folder"] == folder
    assert "looking for a copy on this machine: the hub doesn't answer" in away["steps"]
    for status, code in ((401, "RepoNotFound"), (403, ""), (404, "RepoNotFound")):
        hub.refusals["tiny/whole"] = (status, code)
        told = from_hub(hub, tmp_path, "tiny/whole")
        assert "has no such model or shows it only to others" in told["error"]

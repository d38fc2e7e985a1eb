"""From a source to a checked folder: folders, a hub on loopback, object stores, and one sentence for each failure."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from serve_app.config import ModelConfig
from serve_app.demo import CHECKPOINT
from serve_app.engines import source
from serve_app.errors import ConfigError
from serve_app.load_progress import to_nobody
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
from serve_app.config import ModelConfig
from serve_app.engines import source
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


# Object stores


class Store(MemoryFileSystem):  # type: ignore[misc]  # untyped
    """A store that counts what is read, can break off, and can hold its readers up."""

    protocol = "counted"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    opened: ClassVar[list[str]] = []
    broken: ClassVar[set[str]] = set()
    gate = threading.Event()

    def find(self, *args: Any, **options: Any) -> Any:
        if "find" in self.broken:
            raise OSError("no route to host")
        return super().find(*args, **options)

    def _open(self, path: str, mode: str = "rb", *args: Any, **options: Any) -> Any:
        if "r" in mode:
            name = path.rpartition("/")[2]
            self.opened.append(name)
            self.gate.wait(20)
            if name in self.broken:
                raise OSError("connection reset")
        return super()._open(path, mode, *args, **options)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    fsspec.register_implementation("counted", Store, clobber=True)
    monkeypatch.setenv("SERVE_APP_CACHE", str(tmp_path / "cache"))
    Store.opened, Store.broken, Store.gate = [], set(), threading.Event()
    Store.gate.set()
    found: Store = fsspec.filesystem("counted")
    folder = sharded(tmp_path / "remote")
    (folder / "sub").mkdir()
    (folder / "sub/more.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    found.put(f"{folder}/", "counted://bucket/model/", recursive=True)
    return found


def test_a_store_is_copied_once(store: Store, tmp_path: Path) -> None:
    steps: list[str] = []
    folder = source.resolve(ModelConfig(source="counted://bucket/model"), steps.append)
    assert folder.is_relative_to(tmp_path / "cache")
    assert (folder / "sub/more.json").read_text() == "{}"
    assert not (folder / "pytorch_model.bin").exists()
    assert re.fullmatch(r"downloading (\d\.\d) of \1 kB", steps[-1])
    num_opened = len(store.opened)
    assert resolve("counted://bucket/model/") == resolve("counted://bucket/model/")
    assert resolve("counted://bucket/model") == folder
    store.pipe("counted://bucket/model/config.json", b'{"model_type": "opt"}')
    newer = resolve("counted://bucket/model")
    assert newer != folder
    assert json.loads((newer / "config.json").read_text()) == {"model_type": "opt"}
    assert num_opened == 5


def test_what_was_cut_off_goes_on(store: Store, tmp_path: Path) -> None:
    store.broken.add("config.json")
    with pytest.raises(ConfigError, match=r"counted://bucket/model.*connection reset.*check the URL, the network"):
        resolve("counted://bucket/model")
    store.broken.clear()
    store.opened.clear()
    folder = resolve("counted://bucket/model")
    assert store.opened == ["config.json"]
    assert not list((tmp_path / "cache/checkpoints").rglob("*.partial"))
    assert not list(folder.rglob("*.part"))


def test_a_store_that_is_away_leaves_the_last_copy(store: Store) -> None:
    store.broken.add("find")
    with pytest.raises(ConfigError, match=r"counted://bucket/model' can't be downloaded .*no route to host"):
        resolve("counted://bucket/model")
    store.broken.clear()
    folder = resolve("counted://bucket/model")
    store.broken.add("find")
    steps: list[str] = []
    assert source.resolve(ModelConfig(source="counted://bucket/model"), steps.append) == folder
    assert steps == ["using the copy on this machine: the store doesn't answer"]


def test_two_replicas_download_once(store: Store) -> None:
    store.gate.clear()
    told: list[list[str]] = [[], []]
    config = ModelConfig(source="counted://bucket/model")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(source.resolve, config, told[0].append)
        while not store.opened:
            pass
        second = pool.submit(source.resolve, config, told[1].append)
        while not told[1]:
            pass
        store.gate.set()
        assert first.result() == second.result()
    assert told[1] == ["waiting for another replica's download"]
    assert len(store.opened) == len(set(store.opened)) == 5


def test_a_folder_as_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVE_APP_CACHE", str(tmp_path / "cache"))
    whole(tmp_path / "share")
    folder = resolve(f"file://{tmp_path}/share")
    assert (folder / WEIGHTS).read_bytes() == (tmp_path / "share" / WEIGHTS).read_bytes()
    assert folder.is_relative_to(tmp_path / "cache/checkpoints")


def test_no_room_is_told_before_the_download(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(ConfigError, match=r"needs 0.\d kB in .* and 0.0 kB are free: .*SERVE_APP_CACHE"):
        resolve("counted://bucket/model")
    assert not store.opened


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("s4://bucket/model", "'s4' is no protocol that fsspec knows: did you mean 's3'"),
        ("counted://bucket/none", "has no files of a checkpoint: correct the URL"),
        ("counted://bucket/model/sub", "has no config.json"),
    ],
)
def test_urls_that_lead_nowhere(store: Store, url: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=f"^source '{url}'.*{sentence}"):
        resolve(url)


def test_a_store_without_its_package() -> None:
    with pytest.raises(ConfigError, match=r"dropbox://model' needs a package that isn't installed: .*dropboxdrivefs"):
        resolve("dropbox://model")

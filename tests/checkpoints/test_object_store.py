"""Object stores: copied once, which errors leave an old copy, which copies stay, and what is told of a version."""

import errno
import json
import multiprocessing
import re
import shutil
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import fsspec
import pytest
import requests
from fsspec.implementations.memory import MemoryFileSystem
from prometheus_client import CollectorRegistry

from serve_app.checkpoints import source, store_copies
from serve_app.checkpoints.load_progress import to_nobody
from serve_app.checkpoints.store_away import is_away
from serve_app.config.applications import ModelConfig
from serve_app.engines.choice import create_engine
from serve_app.errors import ConfigError
from serve_app.metrics.registry import Metrics
from serve_app.models.entry import ModelEntry
from serve_app.replica.replica import Replica
from tests.checkpoint_folders import WEIGHTS, sharded, whole
from tests.tiny_models import build_llama


def resolve(name: Path | str, **settings: Any) -> Path:
    return source.resolve(ModelConfig(source=str(name), **settings), to_nobody)


class Store(MemoryFileSystem):  # type: ignore[misc]  # untyped
    """A store that counts what is read, can break off, and can hold its readers up."""

    protocol = "counted"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    opened: ClassVar[list[str]] = []
    broken: ClassVar[set[str]] = set()
    broken_by: ClassVar[Exception] = OSError(errno.EHOSTUNREACH, "no route to host")
    gate = threading.Event()

    def find(self, *args: Any, **options: Any) -> Any:
        if "find" in self.broken:
            raise self.broken_by
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
    Store.broken_by = OSError(errno.EHOSTUNREACH, "no route to host")
    Store.gate.set()
    found: Store = fsspec.filesystem("counted")
    if found.exists("counted://bucket"):  # of the test before: the store is in memory
        found.rm("counted://bucket", recursive=True)
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
    version, note = source.version_of(ModelConfig(source="counted://bucket/model"))
    assert version == folder.name
    assert re.search(r"the store didn't answer at the start: .* used last, at \d{4}-", note or "")


class ClientError(Exception):
    """As botocore's: the status is in a mapping."""

    def __init__(self, status: int) -> None:
        super().__init__("An error occurred")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def caused_by(error: Exception, cause: Exception) -> Exception:
    """As s3fs translates botocore's errors."""
    error.__cause__ = cause
    return error


def refused_connection(library: str) -> Exception:
    """What such a library raises where nobody listens."""
    try:
        if library == "requests":
            requests.get("http://127.0.0.1:9", timeout=5)
        else:
            socket.create_connection(("127.0.0.1", 9))
    except Exception as exc:  # noqa: BLE001 -- whatever it is
        return exc
    raise AssertionError("somebody listens")


AWAY = [
    refused_connection("requests"),
    refused_connection("socket"),
    TimeoutError(),
    socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    OSError(errno.ENETUNREACH, "Network is unreachable"),
    requests.exceptions.ReadTimeout(),
    aiohttp.ServerDisconnectedError(),
    caused_by(OSError("could not connect"), ConnectionRefusedError()),
    caused_by(OSError(errno.EBUSY, "SlowDown"), ClientError(503)),
]
REFUSED = [
    PermissionError("The AWS Access Key Id you provided does not exist in our records."),
    FileNotFoundError("The specified bucket does not exist"),
    caused_by(PermissionError("Forbidden"), ClientError(403)),
    caused_by(OSError("Bad Request"), ClientError(400)),
    ssl.SSLCertVerificationError("certificate verify failed"),
    requests.exceptions.SSLError("certificate verify failed"),
    ValueError("Unable to locate credentials"),
    OSError("of some other kind"),
    KeyError("a fault of ours"),
]


@pytest.mark.parametrize("error", AWAY, ids=repr)
def test_who_doesnt_answer_is_away(error: Exception) -> None:
    assert is_away(error)


@pytest.mark.parametrize("error", REFUSED, ids=repr)
def test_a_store_that_refuses_is_an_error_beside_a_copy_too(store: Store, error: Exception) -> None:
    assert not is_away(error)
    resolve("counted://bucket/model")
    store.broken.add("find")
    Store.broken_by = error
    with pytest.raises(ConfigError, match=rf"can't be downloaded \({type(error).__name__}: "):
        resolve("counted://bucket/model")


def change(store: Store, content: int) -> Path:
    """The copy of a new version."""
    store.pipe("counted://bucket/model/more.json", f'{{"n": {content}}}'.encode())
    return resolve("counted://bucket/model")


def copies(folder: Path) -> set[Path]:
    return {path for path in folder.parent.iterdir() if path.is_dir()}


def test_the_last_two_copies_stay(store: Store) -> None:
    first = resolve("counted://bucket/model")
    store.broken.add("more.json")
    with pytest.raises(ConfigError, match="connection reset"):
        change(store, 0)  # leaves a part of a version that nobody will ask for again
    store.broken.clear()
    second = change(store, 1)
    assert copies(first) == {first, second}
    store.rm("counted://bucket/model/more.json")
    time.sleep(0.05)  # the clock of files ticks every few milliseconds
    assert resolve("counted://bucket/model") == first  # back to the one before, which is now the one used last
    third = change(store, 2)
    assert copies(first) == {first, third}
    store.broken.add("find")
    assert resolve("counted://bucket/model") == third


def _hold(folder: Path, ready: Any, end: Any) -> None:
    assert store_copies.hold("counted://bucket/model", store_copies.Copy(folder))
    ready.set()
    end.wait(60)


def test_a_copy_that_a_replica_was_loaded_from_stays(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    ready, end = context.Event(), context.Event()
    first = resolve("counted://bucket/model")
    replica = context.Process(target=_hold, args=(first, ready, end))
    replica.start()
    assert ready.wait(60)
    second, third = change(store, 1), change(store, 2)
    assert copies(first) == {first, second, third}
    end.set()
    replica.join()
    fourth = change(store, 3)
    assert copies(first) == {third, fourth}


def test_a_copy_that_cant_be_marked_is_used(store: Store) -> None:
    folder = resolve("counted://bucket/model")
    (folder.parent / f"{folder.name}.used").unlink()
    (folder.parent / f"{folder.name}.used").mkdir()  # as on a disk that may only be read
    assert resolve("counted://bucket/model") == folder


async def test_the_version_is_told_with_the_model_and_that_it_may_be_old(store: Store, tmp_path: Path) -> None:
    build_llama(tmp_path / "llama")
    store.put(f"{tmp_path}/llama/", "counted://bucket/llama/", recursive=True)
    config = ModelConfig(source="counted://bucket/llama", engine="transformers", tasks=("chat",))
    told = await told_of(config)
    assert told["version"] == resolve("counted://bucket/llama").name
    assert "version_note" not in told
    store.broken.add("find")
    again = await told_of(config)
    assert again["version"] == told["version"]
    assert "the store didn't answer at the start" in again["version_note"]


async def told_of(config: ModelConfig) -> dict[str, Any]:
    """What `/v1/models` says of such a model, once a replica of it has started."""
    replica = Replica("m", config, create_engine(config), Metrics(CollectorRegistry(), ["m"]))
    await replica.start()
    await replica.stop()
    return ModelEntry("m", "ready", None, replica.describe()).as_json(with_reason=True)


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

"""From a config's `source` to a checked folder on this machine: the demo, a folder, a hub id, an object store's URL.

Engines load from the folder that `resolve` returns. Imports no torch and no transformers, so that a source that can't
work is refused before the seconds that their imports take. The hub's client is imported only when it is needed: it
reads its environment then, which a replica sets (`env_from`).
"""

import logging
import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from serve_app.checkpoints import object_store, store_copies
from serve_app.checkpoints.folder import check_adapter, check_checkpoint, check_own_code
from serve_app.checkpoints.load_errors import explain_download
from serve_app.checkpoints.load_progress import DownloadProgress, Report
from serve_app.config.applications import ModelConfig
from serve_app.errors import ConfigError

logger = logging.getLogger("serve_app")

Kind = Literal["folder", "url", "hub"]

# What engines read. Weights in other formats (pickles, ONNX, GGUF, TensorFlow) would double or triple a download.
_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.py", "*.txt", "*.model", "*.tiktoken"]
_PICKLES = ["*.bin", "*.pt", "*.pth"]
_IGNORED = ["onnx/*", "original/*", "openvino/*", "coreml/*", "consolidated*", "*/.*", ".*"]
_REFUSALS = (400, 401, 403, 404, 410, 451)  # of a hub: a key that was revoked, a model or revision that is gone
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def resolve(config: ModelConfig, report: Report) -> Path:
    """The folder of the model's checkpoint, downloaded where need be. Blocks: call it in a thread.

    Raises `ConfigError` with a sentence that names the source and the fix.
    """
    check(config)
    needs_safetensors = config.weights_format == "safetensors"
    patterns = _PATTERNS if needs_safetensors else _PATTERNS + _PICKLES
    folder = _folder(config.source, config.revision, patterns, report)
    check_checkpoint(folder, config.source, needs_safetensors)
    if config.trust_remote_code and _kind(config.source) == "hub":
        check_own_code(folder, config.source)
    return folder


def resolve_adapter(source: str, report: Report) -> Path:
    """The folder of a LoRA adapter, from a folder, a hub id or a URL. Blocks; raises `ConfigError`."""
    folder = _folder(source, None, _PATTERNS, report)
    check_adapter(folder, source)
    return folder


def check(config: ModelConfig) -> None:
    """Check what takes milliseconds and no network. Raises `ConfigError`."""
    check_settings(config)
    if _kind(config.source) == "folder":
        check_checkpoint(_local(config.source), config.source, config.weights_format == "safetensors")


def check_settings(config: ModelConfig) -> None:
    """Refuse settings that contradict the kind of source, or that no kind may have. Raises `ConfigError`."""
    kind = _kind(config.source)
    if kind == "hub" and config.trust_remote_code and not _COMMIT.fullmatch(config.revision or ""):
        raise ConfigError(
            f"source '{config.source}' would run code from a hub that may change: with trust_remote_code set "
            "revision to the commit that you have read, 40 hex digits"
        )
    if kind != "hub" and config.revision is not None:
        raise ConfigError(f"source '{config.source}' is no hub id and has no revisions: leave revision out")


def is_absent_folder(source: str) -> bool:
    """Whether it can only be a folder and isn't on this machine; it may be on another."""
    return "://" not in source and source.startswith(("/", ".", "~")) and not _local(source).is_dir()


def local_folder(source: str) -> Path | None:
    """The checkpoint's folder where it lies on this machine; None where it lies elsewhere or must be fetched."""
    folder = _local(source)
    return folder if "://" not in source and (folder / "config.json").is_file() else None


def version_of(config: ModelConfig) -> tuple[str | None, str | None]:
    """The version of the source that this process loaded, and why it may be outdated; None where it isn't known.

    For a hub it is the commit, for an object store a digest of its listing; a folder has none. Call after `resolve`.
    """
    kind = _kind(config.source)
    if kind == "url" and (copy := store_copies.current(config.source)):
        return copy.folder.name, copy.note
    if kind == "hub":
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(config.source, "config.json", revision=config.revision)
        return (Path(file).parent.name, None) if isinstance(file, str) else (None, None)
    return None, None


def hub_id(source: str) -> str | None:
    """The name under which anybody finds this source on a hub; None where it is a folder or an address."""
    is_name = source.count("/") == 1 and _HUB_ID.fullmatch(source)
    return source if is_name and not _local(source).is_dir() else None


def _kind(source: str) -> Kind:
    """What a source is. Raises `ConfigError` where it can only be a folder, and isn't."""
    if "://" in source:
        return "url"
    folder = _local(source)
    if folder.is_dir():
        return "folder"
    if source.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(source) or source == "demo":
        raise ConfigError(f"source '{source}': there is no folder {folder}; correct the path or name a hub id")
    return "hub"


def _local(source: str) -> Path:
    if source == "demo":
        from serve_app.demo import CHECKPOINT

        return CHECKPOINT
    return Path(source).expanduser()


def _folder(source: str, revision: str | None, patterns: list[str], report: Report) -> Path:
    kind = _kind(source)
    if kind == "folder":
        return _local(source)
    try:
        if kind == "url":
            return object_store.fetch(source, lambda name: _is_part(name, patterns), report)
        return _snapshot(source, revision, patterns, report)
    except ConfigError:
        raise
    except Exception as exc:  # a boundary: hubs, stores and their clients raise anything at all
        raise ConfigError(explain_download(exc, source, revision)) from exc


def _is_part(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, p) for p in patterns) and not any(fnmatch(name, p) for p in _IGNORED)


def _snapshot(source: str, revision: str | None, patterns: list[str], report: Report) -> Path:
    """The hub's files in its own cache (`HF_HOME`), which resumes downloads and shares them between replicas."""
    from huggingface_hub import constants, snapshot_download

    report("asking the hub")
    files = _hub_files(source, revision, patterns)
    if files is not None:
        _require_weights(source, list(files), patterns)
    elif not constants.HF_HUB_OFFLINE:
        report("looking for a copy on this machine: the hub doesn't answer")
        logger.warning("source=%s: the hub doesn't answer: what this machine's cache has may be old", source)
    progress = DownloadProgress(report, sum(files.values()) if files else None)
    bar = _bar(progress.add)
    return Path(
        snapshot_download(
            source, revision=revision, allow_patterns=patterns, ignore_patterns=_IGNORED, tqdm_class=bar
        )
    )  # fmt: skip


def _hub_files(source: str, revision: str | None, patterns: list[str]) -> dict[str, int] | None:
    """The files' sizes in bytes; None where the hub doesn't answer. Raises its client's error where it refuses."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        siblings = HfApi().model_info(source, revision=revision, files_metadata=True).siblings or []
    except HfHubHTTPError as exc:
        if exc.response.status_code in _REFUSALS:  # else its client would silently use an old copy
            raise
        return None
    except Exception:  # noqa: BLE001 -- its HTTP library's, which changes; the download then uses the cache or explains
        return None
    return {file.rfilename: file.size or 0 for file in siblings if _is_part(file.rfilename, patterns)}


def _require_weights(source: str, files: list[str], patterns: list[str]) -> None:
    """Refuse before gigabytes are downloaded."""
    kinds = ["*.safetensors", *(p for p in _PICKLES if p in patterns)]
    if not any(fnmatch(name, kind) for name in files for kind in kinds):
        raise ConfigError(
            f"source '{source}' has no *.safetensors weights on the hub: name a revision or a copy that has, or "
            "trust its pickles with weights_format: any"
        )


def _bar(add: Callable[[int], None]) -> type[Any]:
    """huggingface_hub reports bytes only to a progress bar of the caller's class. This one draws nothing."""
    from huggingface_hub.utils import tqdm as hub_tqdm

    class Bar(hub_tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            # It makes three bars: for files, for bytes from the network, and for bytes on the disk, which count.
            self._counts_bytes = options.get("unit") == "B" and options.get("desc") != "Downloading bytes"
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._counts_bytes:
                add(int(n or 0))

    return Bar

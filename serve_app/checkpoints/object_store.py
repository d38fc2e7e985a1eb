"""Copies a folder of an object store into a cache on this machine, once: any protocol that fsspec knows.

Each version of a URL's files has its own folder, which appears only when it is complete. The replicas of a node share
it: the first downloads, the others wait for its lock. An interrupted download resumes with the missing files. While a
store doesn't answer, the copy that was used last serves; a store that refuses is an error.
"""

import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from serve_app.checkpoints.load_progress import DownloadProgress, Report, amount
from serve_app.checkpoints.store_away import is_away
from serve_app.checkpoints.store_copies import Copy, cache_folder, copy_of, delete_old, hold, sole, whole_copies
from serve_app.errors import ConfigError
from serve_app.strict import nearest_hint

logger = logging.getLogger("serve_app")

_BLOCK_BYTES = 8 << 20
_NUM_STREAMS = 4  # files at a time: one connection seldom fills a data centre's network
# How stores name the version of a file's content, or else the time of its change.
_VERSION_KEYS = ("etag", "ETag", "md5Hash", "content_md5", "generation", "mtime", "LastModified", "last_modified")


@dataclass(frozen=True, slots=True)
class _RemoteFile:
    """A file below the URL: its path in the store, its name below the URL, its size in bytes."""

    path: str
    name: str
    size: int
    version: str


def fetch(url: str, is_part: Callable[[str], bool], report: Report) -> Path:
    """The local folder with the files below `url` whose names `is_part` accepts.

    Blocks. Raises `ConfigError`, or the store's own error.
    """
    _require_protocol(url)
    try:
        store, root = fsspec.url_to_fs(url)
        store.invalidate_cache()
        files = [file for file in _listing(store, str(root).rstrip("/")) if is_part(file.name)]
    except Exception as exc:  # a boundary: stores raise anything at all
        if is_away(exc) and (copy := _last_copy(url, exc, report)):
            return copy
        raise
    if not files:
        raise ConfigError(f"source '{url}' has no files of a checkpoint: correct the URL")
    target = copy_of(url, _listing_text(files))
    if not hold(url, Copy(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        with sole(target, report):
            if not target.is_dir():
                _download(store, files, Path(f"{target}.partial"), url, report)
                Path(f"{target}.partial").rename(target)
            hold(url, Copy(target))
    delete_old(url)
    return target


def _require_protocol(url: str) -> None:
    protocol = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as exc:
        raise ConfigError(f"source '{url}' needs a package that isn't installed: {exc}") from exc
    except ValueError as exc:
        hint = nearest_hint(protocol, fsspec.available_protocols())
        raise ConfigError(f"source '{url}': '{protocol}' is no protocol that fsspec knows{hint}") from exc


def _listing(store: Any, root: str) -> list[_RemoteFile]:
    entries = store.find(root, detail=True)
    return [
        _RemoteFile(path, path[len(root) :].lstrip("/"), int(info["size"]), _version(info))
        for path, info in sorted(entries.items())
        if path.startswith(f"{root}/")
    ]


def _version(info: dict[str, Any]) -> str:
    return next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), str(info.get("created", "")))


def _listing_text(files: list[_RemoteFile]) -> str:
    """A text that differs for other files and other versions."""
    return "\n".join(f"{file.name} {file.size} {file.version}" for file in files)


def _last_copy(url: str, exc: Exception, report: Report) -> Path | None:
    """The copy to use while the store is away; None where there is none."""
    for folder in whole_copies(url):
        used = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(folder.stat().st_mtime))
        note = f"the store didn't answer at the start: this is the copy that its machine used last, at {used}"
        if hold(url, Copy(folder, note)):
            report("using the copy on this machine: the store doesn't answer")
            logger.warning("source=%s: %s (%s)", url, note, type(exc).__name__)
            return folder
    return None


def _download(store: Any, files: list[_RemoteFile], folder: Path, url: str, report: Report) -> None:
    folder.mkdir(exist_ok=True)
    total = sum(file.size for file in files)
    missing = [file for file in files if not (folder / file.name).is_file()]
    needed, free = sum(file.size for file in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"source '{url}' needs {amount(needed)} in {cache_folder()} and {amount(free)} are free: free some, or "
            "name a larger disk in SERVE_APP_CACHE"
        )
    progress = DownloadProgress(report, total)
    progress.add(total - needed)
    with ThreadPoolExecutor(_NUM_STREAMS, thread_name_prefix="download") as pool:
        copies = [pool.submit(_copy, store, file, folder, progress) for file in missing]
        for copy in copies:
            copy.result()


def _copy(store: Any, file: _RemoteFile, folder: Path, progress: DownloadProgress) -> None:
    """Copy one file, which gets its name only when it is complete."""
    target = folder / file.name
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with store.open(file.path, "rb") as remote, part.open("wb") as local:
        while block := remote.read(_BLOCK_BYTES):
            local.write(block)
            progress.add(len(block))
    if part.stat().st_size != file.size:
        raise OSError(f"{file.name} ended after {part.stat().st_size} of {file.size} bytes")
    part.rename(target)

"""The copies of object stores' files on this machine: a folder for each version of a URL's files.

A replica locks the copy that it was loaded from for as long as it lives. The copies that were used last stay; others
without a lock are deleted. The empty files beside the folders are the locks. They stay, because two processes could
hold a lock whose file was deleted.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from serve_app.checkpoints.load_progress import Report

logger = logging.getLogger("serve_app")

_NUM_KEPT = 2  # of a URL's versions: the one that serves, and the one before it


@dataclass(frozen=True, slots=True)
class Copy:
    """A complete copy. `note` says why it may be outdated."""

    folder: Path
    note: str | None = None


_current: dict[str, tuple[Copy, int | None]] = {}  # by URL, with the descriptor of the file that has the lock


def current(url: str) -> Copy | None:
    """The copy of that URL which this process used last."""
    copy, _ = _current.get(url.rstrip("/"), (None, None))
    return copy


def hold(url: str, copy: Copy) -> bool:
    """Mark the copy as the one used last, and keep it while this process lives; False where it isn't there."""
    if not copy.folder.is_dir():
        return False
    lock: int | None = None
    with suppress(OSError):  # nobody deletes from a cache that can't be written
        lock = os.open(f"{copy.folder}.used", os.O_WRONLY | os.O_CREAT, 0o644)  # open while this process lives
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(copy.folder)
    if not copy.folder.is_dir():  # it was being deleted
        return False
    _, before = _current.get(url.rstrip("/"), (None, None))
    _current[url.rstrip("/")] = copy, lock
    if before is not None:
        os.close(before)
    return True


def delete_old(url: str) -> None:
    """Delete all but the copies used last, and the remains of downloads that were abandoned."""
    for folder in whole_copies(url)[_NUM_KEPT:]:
        with suppress(OSError), Path(f"{folder}.used").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where a replica was loaded from it
            logger.info("deleting %s: newer copies of %s are here", folder, url)
            shutil.rmtree(folder, ignore_errors=True)
    for partial in _folder_of(url).glob("*.partial"):
        with suppress(OSError, Timeout), FileLock(partial.with_suffix(".lock"), timeout=0):
            shutil.rmtree(partial, ignore_errors=True)


def copy_of(url: str, listing: str) -> Path:
    """The folder for this listing of the URL's files. It exists only if the copy is complete."""
    return _folder_of(url) / _digest(listing)


def whole_copies(url: str) -> list[Path]:
    """The complete copies, the one used last first. Only their names have no suffix."""
    whole = [folder for folder in _folder_of(url).glob("*") if folder.is_dir() and not folder.suffix]
    return sorted(whole, key=lambda folder: folder.stat().st_mtime_ns, reverse=True)


@contextmanager
def sole(target: Path, report: Report) -> Iterator[None]:
    """Keep other processes of this machine from downloading `target`. The system frees a dead process's lock."""
    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("waiting for another replica's download")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def cache_folder() -> Path:
    """`SERVE_APP_CACHE`, or `~/.cache/serve_app`."""
    return Path(os.environ.get("SERVE_APP_CACHE") or "~/.cache/serve_app").expanduser()


def _folder_of(url: str) -> Path:
    """The parent of all versions of this URL's files."""
    url = url.rstrip("/")
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", url.rpartition("/")[2])[-64:]
    return cache_folder() / "checkpoints" / f"{name}-{_digest(url)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

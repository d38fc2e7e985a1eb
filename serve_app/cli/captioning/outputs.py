"""Where captions go: one file of rows, a text file beside each image, or the terminal.

A row is one write, so a killed run leaves at most one torn record, at the end; opening the file again drops
it. An output is locked while a run writes it; the lock ends with the process.
"""

import fcntl
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from typing import BinaryIO, Literal

from serve_app.cli.captioning.images import is_image_name
from serve_app.cli.captioning.rows import CaptionSettings, CsvRecords, JsonLines, Row, file_id
from serve_app.cli.errors import USAGE, CliError
from serve_app.cli.terminal import one_line, printable

State = Literal["new", "done", "failed"]
FAILURES_NAME = "serve-app-failures.jsonl"


class Ledger:
    """A JSONL or CSV file of rows that grows at its end. Rows with other settings don't count as done."""

    def __init__(self, path: str, settings: CaptionSettings, is_overwriting: bool = False) -> None:
        self.path = path
        self._settings = settings
        self._format = CsvRecords() if path.lower().endswith(".csv") else JsonLines()
        self._done: set[bytes] = set()
        self._failed: set[bytes] = set()
        self.num_bad_records = 0
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 -- closed by `close`
        except OSError as exc:
            raise CliError(f"{path} can't be written ({exc.strerror}): choose another --output", USAGE) from exc
        _lock(self._file.fileno(), path)
        if is_overwriting:
            self._file.truncate(0)
        self._load()

    def state(self, file: str) -> State:
        key = file_id(file)
        return "done" if key in self._done else "failed" if key in self._failed else "new"

    def write(self, row: Row) -> None:
        self._append(self._format.encode(row))

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()

    def _load(self) -> None:
        """Read which files are done, drop a torn record at the end, and write the header of an empty file."""
        end, num_rows, num_records = 0, 0, 0
        with open(self.path, "rb") as lines:
            for num_bytes, row in self._format.records(lines):
                num_records += 1
                is_header = end == 0 and bool(self._format.header)
                end += num_bytes
                if row is not None:
                    num_rows += 1
                    self._add(row)
                elif not is_header:
                    self.num_bad_records += 1
            size = os.fstat(lines.fileno()).st_size
            lines.seek(0)
            self._check_is_ours(lines, num_rows, end)
        if size > end:
            self._file.truncate(end)
        if end == 0 and self._format.header:
            self._append(self._format.header)

    def _check_is_ours(self, lines: BinaryIO, num_rows: int, end: int) -> None:
        start = self._format.start
        head = lines.read(len(start) + 3).removeprefix(b"\xef\xbb\xbf")
        is_begun = head.startswith(start.rstrip()) or (end == 0 and start.startswith(head))
        if not num_rows and not is_begun:
            raise CliError(
                f"{self.path} holds something else than captions: choose another --output, or --overwrite", USAGE
            )

    def _add(self, row: Row) -> None:
        if row.settings == self._settings:
            (self._failed if row.is_failed else self._done).add(file_id(row.file))

    def _append(self, data: bytes) -> None:
        end = os.fstat(self._file.fileno()).st_size
        try:
            if os.write(self._file.fileno(), data) < len(data):
                raise OSError(0, "no room for a whole row")
        except OSError as exc:
            self._file.truncate(end)
            raise CliError(f"{self.path} can't be written: {exc.strerror}. Make room and run this again") from exc


class TextFiles:
    """`a.txt` beside `a.jpg`; where images would share a text file, `a.jpg.txt` and `a.png.txt` for each.

    An image whose text file is there is done, whoever wrote it. Failures stand in one JSONL file in `folder`,
    which is locked while a run writes beside its images.
    """

    def __init__(self, folder: str, settings: CaptionSettings, is_overwriting: bool = False) -> None:
        self.path = os.path.join(folder, FAILURES_NAME)
        self._settings = settings
        self._is_overwriting = is_overwriting
        try:
            self._lock_fd = os.open(folder, os.O_RDONLY)
        except OSError as exc:
            reason = f"{folder} can't be opened ({exc.strerror})"
            raise CliError(f"{reason}: allow it, or use --output FILE.jsonl", USAGE) from exc
        _lock(self._lock_fd, folder)
        self._failures = Ledger(self.path, self._settings) if os.path.exists(self.path) else None

    def state(self, file: str) -> State:
        if self._is_overwriting:
            return "new"
        if os.path.lexists(text_path(file)):
            return "done"
        return "failed" if self._failures and self._failures.state(file) == "failed" else "new"

    def write(self, row: Row) -> None:
        if not row.is_failed:
            try:
                self._write_text(text_path(row.file), row.caption or "")
                return
            except OSError as exc:
                reason = f"its text file can't be written: {exc.strerror}"
                row = Row(row.file, row.settings, error_code="text_not_written", error_message=reason)
        self._failures = self._failures or Ledger(self.path, self._settings)
        self._failures.write(row)

    def sync(self) -> None:
        if self._failures:
            self._failures.sync()

    def close(self) -> None:
        if self._failures:
            self._failures.close()
        os.close(self._lock_fd)

    def _write_text(self, path: str, caption: str) -> None:
        """All of the text or none: a new file takes the name only when it is whole."""
        mark = blake2b(os.path.basename(path).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        unfinished = os.path.join(os.path.dirname(path), f".serve-app-{mark}.tmp")
        with open(unfinished, "wb") as file:
            file.write(caption.encode("utf-8", "replace") + b"\n")
        os.replace(unfinished, path)


class Printed:
    """Captions on stdout as they come: alone for one image, `file<TAB>caption` lines for several."""

    def __init__(self, is_single: bool, say: Callable[[str], None]) -> None:
        self._is_single = is_single
        self._say = say

    def state(self, file: str) -> State:
        return "new"

    def write(self, row: Row) -> None:
        if row.is_failed:
            self._say(f"{row.file}: {row.error_message}")
            return
        caption = row.caption or ""
        if sys.stdout.isatty():
            caption = printable(caption)
        line = caption if self._is_single else f"{one_line(row.file)}\t{one_line(caption)}"
        sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape") + b"\n")
        sys.stdout.buffer.flush()

    def sync(self) -> None:
        """Does nothing, as nothing is kept."""

    def close(self) -> None:
        """Does nothing, as nothing is open."""


Output = Ledger | TextFiles | Printed


def text_path(file: str) -> str:
    """The text file of an image: decided by the names in its folder alone, so the same in every run."""
    folder, name = os.path.split(file)
    stem = os.path.splitext(name)[0]
    is_shared = stem.casefold() in _contested_stems(folder or ".")
    return os.path.join(folder, f"{name if is_shared else stem}.txt")


@lru_cache(maxsize=16)
def _contested_stems(folder: str) -> frozenset[str]:
    """Stems, in one case, that several images have, or that are an image's whole name (a.jpg and a.jpg.jpg)."""
    seen: set[str] = set()
    contested: set[str] = set()
    try:
        names = [name.casefold() for name in os.listdir(folder) if is_image_name(name)]
    except OSError:
        return frozenset()
    for stem in (os.path.splitext(name)[0] for name in names):
        (contested if stem in seen else seen).add(stem)
    return frozenset(contested | (seen & set(names)))


def _lock(fd: int, path: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise CliError(
            f"another run is writing to {path}: wait until it ends, or choose another --output", USAGE
        ) from exc
    except OSError:
        pass  # a file system without locks: two runs at once would double rows, never tear them

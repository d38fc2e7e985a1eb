"""The images that a file lists."""

import csv
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from tempfile import TemporaryFile
from typing import BinaryIO, Final

from serve_app.cli.captioning.places import is_remote
from serve_app.cli.errors import USAGE, CliError

_LONGEST_PATH: Final = 8192  # bytes, in which a list between NUL bytes has one
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_COLUMNS: Final = ("file", "file_name", "filename", "path", "image", "image_path", "url", "image_url")


class FileList:
    """The paths and addresses that a file lists: one a line, or between NUL bytes as `find -print0` writes them.

    In .csv and .jsonl they stand in a column such as `file`, and are relative to the list's folder, as in our own
    outputs. It is read anew for each iteration. `-` is standard input; that, and a pipe, is copied to a temporary
    file first.
    """

    def __init__(self, path: str) -> None:
        try:
            listed: BinaryIO = sys.stdin.buffer if path == "-" else open(path, "rb")  # noqa: SIM115 -- kept open
            if path == "-" or not stat.S_ISREG(os.fstat(listed.fileno()).st_mode):
                copy = TemporaryFile()  # noqa: SIM115
                shutil.copyfileobj(listed, copy)
                copy.flush()
                listed = copy
        except OSError as exc:
            raise CliError(f"--files-from {path} can't be read: {exc.strerror}", USAGE) from exc
        self._path = path
        self._file = listed
        self._extension = os.path.splitext(path)[1].lower()
        if self._extension == ".csv":
            next(self._of_csv(), None)  # says now what is wrong with its header

    def __iter__(self) -> Iterator[str]:
        match self._extension:
            case ".csv":
                return map(self._in_its_folder, self._of_csv())
            case ".jsonl" | ".ndjson":
                return map(self._in_its_folder, self._of_json_lines())
        return map(_text, self._entries())

    def _of_csv(self) -> Iterator[str]:
        lines = (_text(line) + "\n" for line in self._entries(b"\n"))
        rows = csv.reader(lines)
        header = next(rows, [])
        column = next((header.index(name) for name in _COLUMNS if name in header), None)
        if column is None:
            raise CliError(f"{self._path} has no column named {' or '.join(_COLUMNS)}: name one of them so", USAGE)
        try:
            yield from (row[column] for row in rows if len(row) > column and row[column])
        except csv.Error as exc:
            raise CliError(f"{self._path}, line {rows.line_num}: {exc}", USAGE) from exc

    def _of_json_lines(self) -> Iterator[str]:
        for number, line in enumerate(self._entries(b"\n"), 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
                path = value if isinstance(value, str) else next(value[name] for name in _COLUMNS if name in value)
            except (ValueError, TypeError, StopIteration) as exc:
                names = ", ".join(_COLUMNS)
                raise CliError(f"{self._path}, line {number}: no path or object with one of {names}", USAGE) from exc
            yield str(path)

    def _in_its_folder(self, path: str) -> str:
        return path if is_remote(path) else os.path.join(os.path.dirname(self._path), path)

    def _entries(self, end: bytes | None = None) -> Iterator[bytes]:
        fd = self._file.fileno()
        first = os.pread(fd, _LONGEST_PATH, 0)
        end = end or (b"\0" if b"\0" in first else b"\n")
        rest, offset = b"", len(_BYTE_ORDER_MARK) if first.startswith(_BYTE_ORDER_MARK) else 0
        while piece := os.pread(fd, 1 << 16, offset):
            offset += len(piece)
            *entries, rest = (rest + piece).split(end)
            yield from _not_empty(entries, end)
        yield from _not_empty([rest], end)


def _not_empty(entries: Iterable[bytes], end: bytes) -> Iterator[bytes]:
    """A path may end in CR between NUL bytes, but not on a line."""
    stripped = (entry.removesuffix(b"\r") if end == b"\n" else entry for entry in entries)
    return filter(None, stripped)


def _text(entry: bytes) -> str:
    return os.fsdecode(entry)

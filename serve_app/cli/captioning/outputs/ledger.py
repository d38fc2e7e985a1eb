"""A file of rows that grows at its end: what is done, what failed, and what is to be asked again.

A row is one write, so a killed run leaves at most one torn record, at the end; opening the file again drops it.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from serve_app.cli.captioning.outputs.locks import lock
from serve_app.cli.captioning.outputs.output import State
from serve_app.cli.captioning.outputs.rows import HEAD_BYTES, CaptionSettings, Row, records_of
from serve_app.cli.captioning.places import from_row, key, place, relative
from serve_app.cli.errors import USAGE, CliError


class Ledger:
    """A JSONL or CSV file of rows, locked while it is open. Rows with other settings don't count.

    A caption that was cut at its most tokens counts only for the same `max_tokens`. A row that a later one of the
    same image replaces is dropped when the file is closed, so that an image has one row for the same settings.
    """

    def __init__(
        self,
        path: str,
        settings: CaptionSettings,
        max_tokens: int | None = None,
        is_overwriting: bool = False,
        see: Callable[[Row], bool] = lambda row: True,
        asks_cut_again: bool = True,
    ) -> None:
        """`see` gets every row that is there, and says whether it counts.

        Raises `CliError` where the file isn't ours or can't be written.
        """
        self.path = path
        self._settings = settings
        self._max_tokens = max_tokens
        self._see = see
        self._asks_cut_again = asks_cut_again
        self._format = records_of(path)
        self._done: set[int] = set()
        self._failed: set[int] = set()
        self._cut: set[int] = set()
        self._replaced: set[int] = set()
        self.num_bad_records = 0
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 -- closed by `close`
        except OSError as exc:
            raise CliError(f"{path} can't be written ({exc.strerror}): choose another --output", USAGE) from exc
        self._folder = os.path.realpath(os.path.dirname(path) or ".")
        lock(self._file.fileno(), path)
        if is_overwriting:
            self._file.truncate(0)
        self._num_bytes = self._num_bytes_before = self._load()
        if self._num_bytes == 0 and self._format.header:
            self._append(self._format.header)

    def state(self, path: str) -> State:
        image = key(place(path))
        return "done" if image in self._done else "failed" if image in self._failed else "new"

    def write(self, row: Row, data: bytes | None = None) -> Row:
        at = place(row.file)
        image = key(at)
        if image in self._failed or (image in self._cut and not row.is_failed):
            self._replaced.add(image)
        same_as = row.same_as and relative(place(row.same_as), self._folder)
        self._append(self._format.encode(replace(row, file=relative(at, self._folder), same_as=same_as)))
        return row

    def sync(self) -> None:
        self._check_is_there()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Keep what was written, and drop what was replaced."""
        try:
            os.fsync(self._file.fileno())
            if self._replaced:
                self._drop_replaced()
        finally:
            self._file.close()

    def _load(self) -> int:
        """Read what is done, and drop a torn record at the end. The file's size without it, in bytes."""
        end = 0
        with open(self.path, "rb") as lines:
            self._format.read_header(lines.read(HEAD_BYTES), self.path)
            lines.seek(0)
            for record, row in self._format.records(lines):
                if row is not None:
                    self._add(row)
                elif not (end == 0 and self._format.header):
                    self.num_bad_records += 1
                end += len(record)
            if os.fstat(lines.fileno()).st_size > end:
                self._file.truncate(end)
        return end

    def _add(self, row: Row) -> None:
        if not self._see(row) or row.settings != self._settings:
            return
        image = key(from_row(row.file, self._folder))
        for images in (self._done, self._failed, self._cut):
            images.discard(image)
        if row.is_failed:
            self._failed.add(image)
        elif self._asks_cut_again and row.is_cut and row.max_tokens != self._max_tokens:
            self._cut.add(image)
        else:
            self._done.add(image)

    def _append(self, data: bytes) -> None:
        self._check_is_there()
        try:
            if os.write(self._file.fileno(), data) < len(data):
                raise OSError(0, "no room for a whole row")
        except OSError as exc:
            self._file.truncate(self._num_bytes)
            raise CliError(f"{self.path} can't be written: {exc.strerror}. Make room and run this again") from exc
        self._num_bytes += len(data)

    def _check_is_there(self) -> None:
        """An editor that saves the file puts another in its place; what we write then is in no file."""
        ours = os.fstat(self._file.fileno())
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path), ours) and ours.st_size == self._num_bytes:
                return
        raise CliError(
            f"{self.path} was changed, replaced or deleted by another program while this ran. Run the same command "
            "again: what is missing from the file is captioned then"
        )

    def _drop_replaced(self) -> None:
        """Write the file anew without the rows that a later one replaces. It takes the name when it is whole."""
        self._check_is_there()
        unfinished = f"{self.path}.serve-app.tmp"
        num_bytes = 0
        with open(self.path, "rb") as lines, open(unfinished, "wb") as kept:
            for record, row in self._format.records(lines):
                is_old = num_bytes < self._num_bytes_before
                num_bytes += len(record)
                if not (is_old and row is not None and self._is_replaced(row)):
                    kept.write(record)
            kept.flush()
            os.fsync(kept.fileno())
        os.replace(unfinished, self.path)

    def _is_replaced(self, row: Row) -> bool:
        return row.settings == self._settings and key(from_row(row.file, self._folder)) in self._replaced

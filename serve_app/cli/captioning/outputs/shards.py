"""WebDataset's tars: each image as KEY.jpg, its caption as KEY.txt and its row as KEY.json.

A tar grows by one sample at a time, and the row in the file of rows says how far it reaches. So a run that is killed
between the two leaves bytes that no row speaks of; the next run cuts them off. The headers are the standard
library's, because webdataset's own writer can't go on with a tar.
"""

import errno
import os
import re
import tarfile
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from serve_app.cli.captioning.names import extension_of
from serve_app.cli.captioning.outputs.ledger import Ledger
from serve_app.cli.captioning.outputs.output import State
from serve_app.cli.captioning.outputs.rows import CaptionSettings, JsonLines, Row
from serve_app.cli.captioning.outputs.table import rows_path
from serve_app.cli.captioning.places import place, relative
from serve_app.cli.errors import USAGE, CliError
from serve_app.images.kinds import NUM_BYTES, kind_of

MOST_IMAGES: Final = 10_000
_MOST_BYTES: Final = 1_000_000_000
_NUMBER: Final = re.compile(r"%0?(\d?)d")
_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)  # of a tar


@dataclass(slots=True)
class _Shard:
    """The tar that grows."""

    index: int
    num_images: int = 0
    num_bytes: int = 0


class Shards:
    """Tars named by `pattern`, such as `train-%06d.tar`, or one tar. An image is in them once, whatever was asked.

    A caption that was cut short stays: its sample can't be taken out of a tar.
    """

    def __init__(
        self,
        pattern: str,
        settings: CaptionSettings,
        max_tokens: int | None = None,
        is_overwriting: bool = False,
        most_images: int = MOST_IMAGES,
        relative_to: str | None = None,
    ) -> None:
        """`relative_to`: the folder from which KEY.json names files; None for the tars' own.

        Raises `CliError` where the tars can't be written, or hold captions for which something else was asked."""
        self._name = _Name(pattern)
        self._settings = settings
        self._most_images = most_images
        self._folder = os.path.dirname(pattern)
        self._relative_to = relative_to or self._folder or "."
        self._shard = _Shard(0)
        self._sizes: dict[str, int | None] = {}
        self._full: list[str] = []  # shards that no sample is added to any more
        self._num_samples = 0
        self._is_mixed = False
        self.rows_path = shards_rows_path(pattern)
        if is_overwriting:
            self._remove_all()
        self._ledger = Ledger(self.rows_path, settings, max_tokens, see=self._see, asks_cut_again=False)
        if self._is_mixed:
            self._ledger.close()
            raise CliError(
                f"{self.rows_path} has captions for which something else was asked, and tars hold an image once: "
                "choose another --output, or --overwrite", USAGE,
            )  # fmt: skip
        try:
            self._fd = self._opened()
        except OSError as exc:
            self._ledger.close()
            raise CliError(f"{self._path()} can't be written: {exc.strerror}", USAGE) from exc

    def state(self, path: str) -> State:
        return self._ledger.state(path)

    def write(self, row: Row, data: bytes | None = None) -> Row:
        if not row.is_failed and data is None:
            row = row.as_failure("no_bytes", "the service fetched it itself, so there is no image here for the tar")
        if row.is_failed:
            return self._ledger.write(row)
        assert data is not None, "checked above"
        is_full = self._shard.num_images >= self._most_images or self._shard.num_bytes >= _MOST_BYTES
        if is_full and self._name.is_many:
            self._begin_next()
        key = f"{self._num_samples:09}"
        row = replace(row, text=f"{key}.txt", shard=os.path.basename(self._path()))
        sample = self._sample(key, row, data)
        self._append(sample)
        self._shard.num_images += 1
        self._num_samples += 1
        return self._ledger.write(replace(row, end=self._shard.num_bytes))

    def sync(self) -> None:
        with suppress(ValueError, OSError):  # the next shard began meanwhile
            os.fsync(self._fd)
        self._ledger.sync()

    def close(self) -> None:
        try:
            self._end_shard()
        finally:
            self._ledger.close()

    def _path(self) -> str:
        return self._name.path(self._shard.index)

    def _see(self, row: Row) -> bool:
        """Take in an earlier row. One whose sample didn't reach the disk doesn't count."""
        if row.shard is None or row.end is None:
            return True
        size = self._size(row.shard)
        if size is not None and size < row.end:
            return False
        self._is_mixed |= row.settings != self._settings
        self._num_samples = max(self._num_samples, int((row.text or "0").partition(".")[0]) + 1)
        index = self._name.index(row.shard)
        first_free = index if size is not None else index + 1
        if first_free > self._shard.index:
            self._shard = _Shard(first_free)
        if size is not None:
            self._shard.num_images += 1
            self._shard.num_bytes = row.end
        return True

    def _size(self, name: str) -> int | None:
        """A shard's size in bytes; None where it was packed. Raises `CliError` where it is gone."""
        if name not in self._sizes:
            path = os.path.join(self._folder, name)
            self._sizes[name] = os.path.getsize(path) if os.path.exists(path) else None
            if self._sizes[name] is None and not self._is_packed(name):
                raise CliError(
                    f"{name}, which holds captions of {self.rows_path}, is gone: put it back, or --overwrite", USAGE
                )
        return self._sizes[name]

    def _opened(self) -> int:
        """The shard that grows, cut where its last row ends."""
        fd = os.open(self._path(), os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(fd, self._shard.num_bytes)
        return fd

    def _append(self, data: bytes) -> None:
        """All of it or nothing. Raises `CliError` where there is no room."""
        shard = self._shard
        try:
            if os.pwrite(self._fd, data, shard.num_bytes) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as exc:
            os.ftruncate(self._fd, shard.num_bytes)
            raise CliError(f"{self._path()} can't be written: {exc.strerror}. Make room and run this again") from exc
        shard.num_bytes += len(data)

    def _begin_next(self) -> None:
        self._end_shard()
        self._full.append(self._path())
        self._shard = _Shard(self._shard.index + 1)
        self._fd = self._opened()

    def _end_shard(self) -> None:
        """Close the tar as tars end; a later run takes its end away again."""
        try:
            with suppress(OSError):  # readers need no end; where the disk is full there may be no room for it
                os.pwrite(self._fd, _END, self._shard.num_bytes)
            os.fsync(self._fd)
        finally:
            os.close(self._fd)

    def _sample(self, key: str, row: Row, data: bytes) -> bytes:
        folder = os.path.realpath(self._relative_to)
        as_json = JsonLines().encode(replace(row, file=relative(place(row.file), folder)))
        members = (
            (_extension(row.file, data), data), (".txt", row.written.encode("utf-8", "replace")), (".json", as_json),
        )  # fmt: skip
        return b"".join(_member(key + extension, content) for extension, content in members)

    def _is_packed(self, name: str) -> bool:
        return False

    def _remove_all(self) -> None:
        """The shards that the rows speak of, whatever was asked for them."""
        with suppress(FileNotFoundError), open(self.rows_path, "rb") as lines:
            names = {row.shard for _, row in JsonLines().records(lines) if row and row.shard}
            for name in names:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self._folder, os.path.basename(name)))
        with suppress(FileNotFoundError):
            os.unlink(self.rows_path)


def shards_rows_path(pattern: str) -> str:
    """Where the rows of the tars stand."""
    return rows_path(re.sub(r"[-_.]?%0?\d?d", "", pattern))


class _Name:
    """The path of each shard, by its number. A name without a place for a number is of one shard."""

    def __init__(self, pattern: str) -> None:
        self._before, self._after = pattern, ""
        self._width = 0
        if number := _NUMBER.search(os.path.basename(pattern)):
            at = len(os.path.dirname(pattern) + "/" if os.path.dirname(pattern) else "")
            self._before, self._after = pattern[: at + number.start()], pattern[at + number.end() :]
            self._width = int(number[1] or 1)

    @property
    def is_many(self) -> bool:
        return self._width > 0

    def path(self, index: int) -> str:
        return f"{self._before}{index:0{self._width}}{self._after}" if self.is_many else self._before

    def index(self, name: str) -> int:
        digits = name.removeprefix(os.path.basename(self._before)).removesuffix(self._after)
        return int(digits) if self.is_many and digits.isdigit() else 0


def _member(name: str, content: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(content)
    return header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % _BLOCK)


def _extension(path: str, data: bytes) -> str:
    """By the bytes, as readers of tars choose a decoder by the name."""
    kind = kind_of(data[:NUM_BYTES], extension_of(path))
    if kind is None or kind.media_type is None:
        return extension_of(path) or ".bin"
    subtype = kind.media_type.partition("/")[2]
    return {"jpeg": ".jpg", "tiff": ".tif"}.get(subtype, f".{subtype}")

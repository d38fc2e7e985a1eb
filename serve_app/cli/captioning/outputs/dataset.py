"""A folder that `datasets.load_dataset` opens: Parquet files of images and captions.

A Parquet file is written at once, so images wait in a tar of `Shards` until there are enough. It is packed when it is
full and when a run ends.
"""

import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from serve_app.cli.captioning.libraries import library
from serve_app.cli.captioning.outputs import columns
from serve_app.cli.captioning.outputs.rows import CaptionSettings, JsonLines, Row
from serve_app.cli.captioning.outputs.shards import Shards, shards_rows_path
from serve_app.cli.errors import USAGE, CliError

DATASET: Final = "dataset:"  # how --output names such a folder
_OWN_FOLDER: Final = ".serve-app"  # which load_dataset passes over
_TARS: Final = "images-%05d.tar"
_ROWS_AT_ONCE: Final = 100  # in memory, and in a row group


class DatasetFolder(Shards):
    """`folder/data/train-00000.parquet` and so on."""

    def __init__(
        self, folder: str, settings: CaptionSettings, max_tokens: int | None = None, is_overwriting: bool = False,
        most_images: int = 2000,
    ) -> None:  # fmt: skip
        self._datasets = library("datasets")
        self._parquet = library("pyarrow.parquet")
        self._data = os.path.join(folder, "data")
        own = os.path.join(folder, _OWN_FOLDER)
        try:
            os.makedirs(own, exist_ok=True)
            os.makedirs(self._data, exist_ok=True)
        except OSError as exc:
            raise CliError(f"{folder} can't be written ({exc.strerror}): choose another --output", USAGE) from exc
        super().__init__(os.path.join(own, _TARS), settings, max_tokens, is_overwriting, most_images, folder)
        waiting = sorted(name for name in os.listdir(own) if name.endswith(".tar"))
        self._full += [os.path.join(own, name) for name in waiting if os.path.join(own, name) != self._path()]

    def sync(self) -> None:
        super().sync()
        self._pack_full()

    def close(self) -> None:
        super().close()
        if self._shard.num_images:
            self._full.append(self._path())
        else:
            os.unlink(self._path())
        self._pack_full()

    def _is_packed(self, name: str) -> bool:
        return os.path.exists(self._packed(name))

    def _packed(self, tar: str) -> str:
        return os.path.join(self._data, f"train{os.path.basename(tar)[len('images') : -len('.tar')]}.parquet")

    def _pack_full(self) -> None:
        while self._full:
            self._pack(self._full[0])
            del self._full[0]

    def _pack(self, tar: str) -> None:
        """Raises `CliError` where there is no room; the tar stays then."""
        unfinished = os.path.join(os.path.dirname(tar), "unfinished.parquet")
        try:
            self._write(tar, unfinished)
            os.replace(unfinished, self._packed(tar))
            os.unlink(tar)
        except OSError as exc:
            with suppress(OSError):
                os.unlink(unfinished)
            reason = f"{self._packed(tar)} can't be written: {exc.strerror or exc}"
            raise CliError(f"{reason}. Its images are in {tar}: make room and run this again") from exc

    def _write(self, tar: str, path: str) -> None:
        schema = self._features().arrow_schema
        arrow = library("pyarrow")
        with tarfile.open(tar) as samples, self._parquet.ParquetWriter(path, schema) as out:
            rows = _rows(samples)
            while batch := list(islice(rows, _ROWS_AT_ONCE)):
                out.write_table(arrow.Table.from_pylist(batch, schema=schema))

    def _features(self) -> Any:
        value, texts = self._datasets.Value, {name: self._datasets.Value("string") for name in columns.TEXTS}
        numbers = {name: value("int64") for name in columns.NUMBERS}
        tags = self._datasets.List(value("string"))
        return self._datasets.Features({"image": self._datasets.Image(), **texts, **numbers, "tags": tags})

    def _remove_all(self) -> None:
        own = os.path.join(os.path.dirname(self._data), _OWN_FOLDER)
        for folder, extension in ((own, ".tar"), (self._data, ".parquet")):
            for name in os.listdir(folder):
                if name.endswith(extension):
                    os.unlink(os.path.join(folder, name))
        super()._remove_all()


def dataset_rows_path(folder: str) -> str:
    """Where the rows of the folder stand."""
    return shards_rows_path(os.path.join(folder, _OWN_FOLDER, _TARS))


def _rows(samples: tarfile.TarFile) -> Iterator[dict[str, Any]]:
    """The samples of a tar of ours, each an image, a text and a row."""
    image: tuple[str, bytes] = ("", b"")
    for member in samples:
        file = samples.extractfile(member)
        content = file.read() if file else b""
        if member.name.endswith(".json"):
            row: Row | None = next(row for _, row in JsonLines().records([content]))
            if row is not None:
                yield {"image": {"bytes": image[1], "path": image[0]}, **columns.cells(row)}
        elif not member.name.endswith(".txt"):
            image = (member.name, content)
        samples.members = []  # type: ignore[attr-defined]  # it would keep them all

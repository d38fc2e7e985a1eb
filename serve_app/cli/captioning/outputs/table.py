"""A Parquet file of rows. It can't grow, so rows stand in a JSONL file beside it until a run ends.

A killed run leaves that file, and the same command continues from it.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Final

from serve_app.cli.captioning.libraries import library
from serve_app.cli.captioning.outputs import columns
from serve_app.cli.captioning.outputs.ledger import Ledger
from serve_app.cli.captioning.outputs.output import State
from serve_app.cli.captioning.outputs.rows import CaptionSettings, JsonLines, Row
from serve_app.cli.errors import USAGE, CliError

_BATCH_ROWS: Final = 10_000


class Table:
    """The table at `path`, locked while it is open by its file of rows."""

    def __init__(
        self, path: str, settings: CaptionSettings, max_tokens: int | None = None, is_overwriting: bool = False
    ) -> None:
        """Raises `CliError` where the file isn't ours or can't be written."""
        self._parquet = library("pyarrow.parquet")
        self._path = path
        self._rows_path = rows_path(path)
        if os.path.exists(path) and not is_overwriting and not os.path.exists(self._rows_path):
            self._take_rows_back()
        self._ledger = Ledger(self._rows_path, settings, max_tokens, is_overwriting)

    def state(self, path: str) -> State:
        return self._ledger.state(path)

    def write(self, row: Row, data: bytes | None = None) -> Row:
        return self._ledger.write(row)

    def sync(self) -> None:
        self._ledger.sync()

    def close(self) -> None:
        """Write the table, which takes its name when it is whole."""
        self._ledger.close()
        unfinished = f"{self._path}.serve-app.tmp"
        try:
            if os.path.getsize(self._rows_path):
                self._write(unfinished)
                os.replace(unfinished, self._path)
            os.unlink(self._rows_path)
        except OSError as exc:
            with suppress(OSError):
                os.unlink(unfinished)
            reason = f"{self._path} can't be written: {exc.strerror or exc}"
            raise CliError(f"{reason}. The rows are in {self._rows_path}: make room and run this again") from exc

    def _write(self, path: str) -> None:
        schema = self._schema()
        arrow = library("pyarrow")
        with (
            open(self._rows_path, "rb") as lines,
            self._parquet.ParquetWriter(path, schema, compression="zstd") as out,
        ):
            rows = (columns.cells(row) for _, row in JsonLines().records(lines) if row is not None)
            while batch := list(islice(rows, _BATCH_ROWS)):
                out.write_table(arrow.Table.from_pylist(batch, schema=schema))

    def _schema(self) -> Any:
        arrow = library("pyarrow")
        fields = [(name, arrow.string()) for name in columns.TEXTS]
        fields += [(name, arrow.int64()) for name in columns.NUMBERS]
        return arrow.schema([*fields, ("tags", arrow.list_(arrow.string()))])

    def _take_rows_back(self) -> None:
        """Make the file of rows that the last run removed when it ended."""
        unfinished = f"{self._rows_path}.serve-app.tmp"
        with open(unfinished, "wb") as file:
            for line in table_lines(self._path):
                file.write(line)
        os.replace(unfinished, self._rows_path)


def rows_path(path: str) -> str:
    """Where the rows of an output stand that can't hold them itself."""
    return f"{path}.rows.jsonl"


def table_lines(path: str) -> Iterator[bytes]:
    """Each row of one of our tables as its JSON line. Raises `CliError` where it isn't ours."""
    try:
        table = library("pyarrow.parquet").ParquetFile(path)
        if "row" not in table.schema_arrow.names:
            raise CliError(
                f"{path} holds something else than captions: choose another --output, or --overwrite", USAGE
            )
        for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=["row"]):
            for text in batch.column(0).to_pylist():
                yield f"{text}\n".encode()
    except (OSError, ValueError) as exc:
        raise CliError(f"{path} can't be read as Parquet ({exc}): choose another --output", USAGE) from exc

"""What an output holds, of whatever kind it is: each image with its latest row."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from serve_app.cli.captioning.names import LEDGER_NAME
from serve_app.cli.captioning.outputs.dataset import DATASET, dataset_rows_path
from serve_app.cli.captioning.outputs.rows import HEAD_BYTES, CsvRecords, JsonLines, Row, records_of
from serve_app.cli.captioning.outputs.shards import shards_rows_path
from serve_app.cli.captioning.outputs.table import rows_path, table_lines
from serve_app.cli.captioning.places import from_row, is_remote
from serve_app.cli.errors import USAGE, CliError

KINDS = "FILE.jsonl|.csv|.parquet|FOLDER"


@dataclass(frozen=True, slots=True)
class Captioned:
    """An image of the output: its place, how its row names it, and what came of it."""

    place: str
    name: str
    row: Row


def latest(path: str) -> list[Captioned]:
    """The images of an output, each with its last row for the same settings.

    `path` is what `--output` named, or the folder of a run with txt. Raises `CliError` where there is no output.
    """
    return list({(image.place, image.row.settings): image for image in _images(path)}.values())


def _images(path: str) -> Iterator[Captioned]:
    folder = path.removeprefix(DATASET)
    if os.path.exists(rows := dataset_rows_path(folder)):
        yield from _of_file(rows, folder)
    elif path.endswith(".tar"):
        yield from _of_file(shards_rows_path(path), os.path.dirname(path) or ".")
    elif path.endswith(".parquet") and not os.path.exists(rows_path(path)):
        yield from _of_lines(JsonLines(), table_lines(path), path, os.path.dirname(path) or ".")
    elif not os.path.isdir(path):
        yield from _of_file(rows_path(path) if path.endswith(".parquet") else path, os.path.dirname(path) or ".")
    else:
        yield from _of_texts(path)


def _of_texts(path: str) -> Iterator[Captioned]:
    ledgers = [os.path.join(folder, LEDGER_NAME) for folder, _, names in os.walk(path) if LEDGER_NAME in names]
    if not ledgers:
        raise CliError(f"{path} has no {LEDGER_NAME}: caption it with --output txt, or name a .jsonl or .csv", USAGE)
    for ledger in sorted(ledgers):
        yield from (_as_it_is_now(image, os.path.dirname(ledger)) for image in _of_file(ledger, path))


def _of_file(path: str, top: str) -> Iterator[Captioned]:
    records = records_of(path)
    try:
        with open(path, "rb") as lines:
            records.read_header(lines.read(HEAD_BYTES), path)
            lines.seek(0)
            yield from _of_lines(records, lines, path, top)
    except OSError as exc:
        raise CliError(f"{path} can't be read: {exc.strerror}", USAGE) from exc


def _of_lines(records: JsonLines | CsvRecords, lines: Iterable[bytes], path: str, top: str) -> Iterator[Captioned]:
    folder, top = os.path.realpath(os.path.dirname(path) or "."), os.path.realpath(top)
    for _, row in records.records(lines):
        if row is not None:
            place = from_row(row.file, folder)
            yield Captioned(place, place if is_remote(place) else os.path.relpath(place, top), row)


def _as_it_is_now(image: Captioned, folder: str) -> Captioned:
    """With the text that stands in its file in the folder, which somebody may have corrected."""
    if image.row.text is None:
        return image
    with suppress(OSError), open(os.path.join(folder, image.row.text), "rb") as file:
        return replace(image, row=replace(image.row, caption=file.read().decode("utf-8", "replace").strip()))
    return image

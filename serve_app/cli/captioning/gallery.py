"""The gallery of a run's output: reads its rows, and the images that they name."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

from serve_app.cli.captioning.images import LEDGER_NAME
from serve_app.cli.captioning.places import from_row
from serve_app.cli.captioning.rows import HEAD_BYTES, Row, records_of
from serve_app.cli.captioning.shrink import jpeg
from serve_app.cli.errors import USAGE, CliError
from serve_app.gallery.page import Entry, findings_in, page
from serve_app.gallery.thumbnail import EDGE_PX, QUALITY


@dataclass(frozen=True, slots=True)
class _Captioned:
    """An image of the output: its place on disk, how its row names it, and what came of it."""

    place: str
    name: str
    row: Row

    def entry(self) -> Entry:
        row, thumbnail = self.row, _thumbnail(self.place)
        if row.is_failed:
            return Entry(self.name, error=f"{row.error_code}: {row.error_message}", thumbnail=thumbnail)
        return Entry(self.name, row.caption, findings=_findings(row), thumbnail=thumbnail)


def page_of(path: str, most: int) -> tuple[str, int, int]:
    """The page of an output's first `most` images, how many those are, and how many there are in all.

    `path` is a .jsonl or .csv file, or the folder of a run with txt. Raises `CliError` where there is no output.
    """
    latest = {(image.place, image.row.settings): image for image in _images(path)}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        shown = list(threads.map(_Captioned.entry, islice(latest.values(), most)))
    number = f"{len(shown):,}" if len(shown) == len(latest) else f"{len(shown):,} of {len(latest):,}"
    title = f"{os.path.basename(os.path.abspath(path))}: {number} images"
    return page(title, shown), len(shown), len(latest)


def _images(path: str) -> Iterator[_Captioned]:
    if not os.path.isdir(path):
        yield from _rows_of(path, os.path.dirname(path) or ".")
        return
    ledgers = [os.path.join(folder, LEDGER_NAME) for folder, _, names in os.walk(path) if LEDGER_NAME in names]
    if not ledgers:
        raise CliError(f"{path} has no {LEDGER_NAME}: caption it with --output txt, or name a .jsonl or .csv", USAGE)
    for ledger in sorted(ledgers):
        yield from (_as_it_is_now(image, os.path.dirname(ledger)) for image in _rows_of(ledger, path))


def _rows_of(path: str, top: str) -> Iterator[_Captioned]:
    records = records_of(path)
    folder = os.path.realpath(os.path.dirname(path) or ".")
    try:
        with open(path, "rb") as lines:
            records.read_header(lines.read(HEAD_BYTES), path)
            lines.seek(0)
            for _, row in records.records(lines):
                if row is not None:
                    place = from_row(row.file, folder)
                    yield _Captioned(place, os.path.relpath(place, os.path.realpath(top)), row)
    except OSError as exc:
        raise CliError(f"{path} can't be read: {exc.strerror}", USAGE) from exc


def _as_it_is_now(image: _Captioned, folder: str) -> _Captioned:
    """With the text that stands in its file in the folder, which somebody may have corrected."""
    if image.row.text is None:
        return image
    with suppress(OSError), open(os.path.join(folder, image.row.text), "rb") as file:
        return replace(image, row=replace(image.row, caption=file.read().decode("utf-8", "replace").strip()))
    return image


def _findings(row: Row) -> tuple[str, ...]:
    is_tags = "tags" in row.more or row.settings.style == "tags"
    guard, prompt = row.more.get("guard"), row.settings.prompt
    return findings_in(row.caption or "", prompt, guard, is_cut=row.is_cut, lists_tags=is_tags)


def _thumbnail(path: str) -> bytes | None:
    with suppress(OSError), open(path, "rb") as file:
        return jpeg(file.read(), EDGE_PX, QUALITY)
    return None

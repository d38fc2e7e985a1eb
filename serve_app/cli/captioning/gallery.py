"""One HTML page of images with their captions, failures and findings, which opens from disk and needs no network."""

import base64
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import resources
from itertools import islice
from typing import Any, Final

from serve_app.cli.captioning.names import LEDGER_NAME
from serve_app.cli.captioning.outputs.rows import HEAD_BYTES, Row, records_of
from serve_app.cli.captioning.places import from_row
from serve_app.cli.captioning.shrink import jpeg
from serve_app.cli.errors import USAGE, CliError
from serve_app.dialects.captions.quality import Sight, findings

_EDGE_PX: Final = 320
_QUALITY: Final = 78


@dataclass(frozen=True, slots=True)
class Entry:
    """An image of the gallery: its place on disk, how its row names it, and what came of it."""

    place: str
    name: str
    row: Row

    def as_json(self) -> dict[str, Any]:
        error = f"{self.row.error_code}: {self.row.error_message}" if self.row.is_failed else None
        return {
            "file": self.name.encode("utf-8", "replace").decode(),
            "caption": None if self.row.is_failed else self.row.caption,
            "error": error,
            "findings": list(_findings(self.row)),
            "thumbnail": _thumbnail(self.place),
        }


def page(path: str, most: int) -> tuple[str, int, int]:
    """The page of an output's first `most` images, how many those are, and how many there are in all.

    `path` is a .jsonl or .csv file, or the folder of a run with txt. Raises `CliError` where there is no output.
    """
    latest = {(entry.place, entry.row.settings): entry for entry in _entries(path)}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        shown = list(threads.map(Entry.as_json, islice(latest.values(), most)))
    number = f"{len(shown):,}" if len(shown) == len(latest) else f"{len(shown):,} of {len(latest):,}"
    data = json.dumps({"title": f"{os.path.basename(os.path.abspath(path))}: {number} images", "rows": shown})
    html = resources.files("serve_app.cli.captioning").joinpath("gallery.html").read_text("utf-8")
    return html.replace("@DATA@", data.replace("<", "\\u003c")), len(shown), len(latest)


def _entries(path: str) -> Iterator[Entry]:
    if not os.path.isdir(path):
        yield from _rows_of(path, os.path.dirname(path) or ".")
        return
    ledgers = [os.path.join(folder, LEDGER_NAME) for folder, _, names in os.walk(path) if LEDGER_NAME in names]
    if not ledgers:
        raise CliError(f"{path} has no {LEDGER_NAME}: caption it with --output txt, or name a .jsonl or .csv", USAGE)
    for ledger in sorted(ledgers):
        yield from (_as_it_is_now(entry, os.path.dirname(ledger)) for entry in _rows_of(ledger, path))


def _rows_of(path: str, top: str) -> Iterator[Entry]:
    records = records_of(path)
    folder = os.path.realpath(os.path.dirname(path) or ".")
    try:
        with open(path, "rb") as lines:
            records.read_header(lines.read(HEAD_BYTES), path)
            lines.seek(0)
            for _, row in records.records(lines):
                if row is not None:
                    place = from_row(row.file, folder)
                    yield Entry(place, os.path.relpath(place, os.path.realpath(top)), row)
    except OSError as exc:
        raise CliError(f"{path} can't be read: {exc.strerror}", USAGE) from exc


def _as_it_is_now(entry: Entry, folder: str) -> Entry:
    """With the text that stands in its file in the folder, which somebody may have corrected."""
    if entry.row.text is None:
        return entry
    with suppress(OSError), open(os.path.join(folder, entry.row.text), "rb") as file:
        return replace(entry, row=replace(entry.row, caption=file.read().decode("utf-8", "replace").strip()))
    return entry


def _findings(row: Row) -> tuple[str, ...]:
    """What the guard said, or what it would have seen in the text alone."""
    if row.is_failed:
        return ()
    if guard := row.more.get("guard"):
        return tuple(guard.get("findings") or ())
    style_is_tags = "tags" in row.more or row.settings.style == "tags"
    return findings(Sight(row.caption or "", row.settings.prompt or "", row.is_cut, style_is_tags))


def _thumbnail(path: str) -> str | None:
    try:
        with open(path, "rb") as file:
            made = jpeg(file.read(), _EDGE_PX, _QUALITY)
    except OSError:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(made).decode()}" if made else None

"""The gallery of a run's output: its rows, and the images that they name."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from serve_app.cli.captioning.captioned import Captioned, latest
from serve_app.cli.captioning.inputs.image import FoundImage
from serve_app.cli.captioning.outputs.rows import Row
from serve_app.cli.captioning.places import is_address
from serve_app.cli.captioning.shrink import jpeg
from serve_app.cli.errors import FAILED, CliError
from serve_app.gallery.page import Entry, findings_in, page
from serve_app.gallery.thumbnail import EDGE_PX, QUALITY

MOST_SHOWN = 5000


def write_page(captions: str, name: str | None = None, most: int = MOST_SHOWN) -> str:
    """Write the page of an output's first `most` images, and say so in a sentence.

    `name` None: the output's name with .html, or gallery.html in a folder. Raises `CliError` where there is no output
    or no place to write.
    """
    images = latest(captions)
    shown = images[:most]
    number = f"{len(shown):,}" if len(shown) == len(images) else f"{len(shown):,} of {len(images):,}"
    html = page(f"{os.path.basename(os.path.abspath(captions))}: {number} images", _entries(shown))
    folder = captions.removeprefix("dataset:")
    name = name or (os.path.join(folder, "gallery.html") if os.path.isdir(folder) else f"{captions}.html")
    try:
        with open(name, "w", encoding="utf-8") as file:
            file.write(html)
    except OSError as exc:
        raise CliError(f"{name} can't be written ({exc.strerror}): choose another --output", FAILED) from exc
    rest = f" of {len(images):,}: a larger --limit shows the rest" if len(shown) < len(images) else ""
    return f"{name}: {len(shown):,} images{rest}"


def _entries(images: Sequence[Captioned]) -> list[Entry]:
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(_entry, images))


def _entry(image: Captioned) -> Entry:
    row, thumbnail = image.row, _thumbnail(image.place)
    if row.is_failed:
        return Entry(image.name, error=f"{row.error_code}: {row.error_message}", thumbnail=thumbnail)
    return Entry(image.name, row.written, findings=_findings(row), thumbnail=thumbnail)


def _findings(row: Row) -> tuple[str, ...]:
    is_tags = "tags" in row.more or row.settings.style == "tags"
    guard, prompt = row.more.get("guard"), row.settings.prompt
    return findings_in(row.caption or "", prompt, guard, is_cut=row.is_cut, lists_tags=is_tags)


def _thumbnail(path: str) -> bytes | None:
    """None where the image can't be read any more, as one of a shard or at an address."""
    if is_address(path):
        return None
    with suppress(OSError):
        return jpeg(FoundImage(path).read(), EDGE_PX, QUALITY)
    return None

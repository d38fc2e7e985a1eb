"""Images in the rows of a Parquet file: bytes, Hugging Face's pairs of bytes and a path, or addresses."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from serve_app.cli.captioning.inputs.image import FoundImage
from serve_app.cli.captioning.libraries import library
from serve_app.cli.captioning.places import is_remote
from serve_app.cli.errors import USAGE, CliError

EXTENSIONS: Final = (".parquet",)
ERRORS: Final = (ValueError, OSError)  # of a file that is broken; pyarrow's own are such
_BATCH_ROWS: Final = 16  # whose images are in memory together
_IMAGE_COLUMNS: Final = ("image", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "img", "url", "image_url")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns count. `image`: None for the first that looks like images. `text`: what `{text}` stands for, by
    its column's name or, as beside files, by its extension."""

    image: str | None = None
    text: str = ".txt"

    def image_of(self, path: str, names: Sequence[str]) -> str:
        """Raises `CliError` where there is none."""
        if self.image is not None and self.image in names:
            return self.image
        if self.image is None and (usual := next((name for name in _IMAGE_COLUMNS if name in names), None)):
            return usual
        columns = ", ".join(names)
        raise CliError(f"{path}: name the column of its images with --image-column; it has {columns}", USAGE)

    def text_of(self, names: Sequence[str]) -> str | None:
        name = self.text.lstrip(".")
        spellings = [name, *(("text", "caption") if name == "txt" else ())]
        return next((name for name in spellings if name in names), None)


def images(path: str, file: BinaryIO, columns: Columns, is_counting: bool) -> Iterator[FoundImage]:
    table = library("pyarrow.parquet").ParquetFile(file)
    if is_counting:
        for index in range(table.metadata.num_rows):
            yield FoundImage(f"{path}/{index:09}")
        return
    there = table.schema_arrow.names
    image, text = columns.image_of(path, there), columns.text_of(there)
    names = [image] if text is None else [image, text]
    index = 0
    for batch in table.iter_batches(batch_size=_BATCH_ROWS, columns=names):
        for row in batch.to_pylist():
            yield image_of(f"{path}/{index:09}", row[image], row.get(text))
            index += 1


def image_of(path: str, value: Any, text: Any) -> FoundImage:
    """`value` is bytes, an address, or Hugging Face's pair of bytes and a path."""
    text = text.strip() if isinstance(text, str) else ""
    data, address = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, value)
    if isinstance(data, bytes):
        return FoundImage(path, data=data, text=text)
    if isinstance(address, str) and is_remote(address):
        return FoundImage(address)
    if isinstance(address, str) and os.path.isfile(file := os.path.join(os.path.dirname(path), address)):
        return FoundImage(file)
    return FoundImage(path, "no_image", "its row holds no image")

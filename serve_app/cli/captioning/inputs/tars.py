"""Images in WebDataset's tars, which are read from front to back."""

import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final

from serve_app.cli.captioning.inputs.image import FoundImage
from serve_app.cli.captioning.libraries import library
from serve_app.cli.captioning.names import IMAGE_EXTENSIONS, extension_of

EXTENSIONS: Final = (".tar", ".tar.gz", ".tgz")
ERRORS: Final = (tarfile.TarError, zlib.error, EOFError, OSError)  # of a tar that is broken or cut short


def images(path: str, file: BinaryIO, text_extension: str) -> Iterator[FoundImage]:
    """A sample's members stand one after the other, and their names are alike up to the first dot."""
    tariterators = library("webdataset.tariterators")
    text_name = text_extension.lstrip(".").lower()
    key: str | None = None
    waiting: list[tuple[str, bytes]] = []
    text = ""

    def sample() -> Iterator[FoundImage]:
        for name, data in waiting:
            yield FoundImage(f"{path}/{name}", data=data, text=text)

    def is_read(name: str) -> bool:
        return _is_image(name) or name.lower().endswith(f".{text_name}")

    for member in tariterators.tar_file_iterator(file, select_files=is_read):
        name = _label(member["fname"])
        member_key, extension = tariterators.base_plus_ext(name)
        if member_key is None or member_key != key:
            yield from sample()
            key, waiting, text = member_key, [], ""
        if _is_image(name):
            waiting.append((name, member["data"]))
        elif (extension or "").lower() == text_name:
            text = member["data"].decode("utf-8", "replace").strip()
    yield from sample()


def counted(path: str, file: BinaryIO) -> Iterator[FoundImage]:
    """Of a tar that isn't compressed the bytes of the images are passed over."""
    with tarfile.open(fileobj=file, mode="r:*") as tar:
        while member := tar.next():
            if member.isreg() and _is_image(member.name):
                yield FoundImage(f"{path}/{_label(member.name)}")
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all


def _is_image(name: str) -> bool:
    return extension_of(name) in IMAGE_EXTENSIONS


def _label(name: str) -> str:
    """A member's path, which is a name here and never leads anywhere."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))

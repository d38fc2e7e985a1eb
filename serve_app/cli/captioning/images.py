"""Finding images: a sorted walk over files, folders and patterns that never follows a loop.

Looks at names only. The service judges what an image holds.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve_app.cli.errors import USAGE, CliError

MEDIA_TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".avif": "image/avif",
}


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image's path as the arguments spell it, or a folder that can't be listed and the reason."""

    path: str
    folder_reason: str | None = None


def extension_of(name: str) -> str:
    """The extension in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def is_image_name(name: str) -> bool:
    return extension_of(name) in MEDIA_TYPES


class ImageWalk:
    """All images under `arguments`, folder by folder, names sorted. Counts what it passes over.

    Each folder is entered once, also where symbolic links lead to it again. One folder's names are held at a time.
    A folder that can't be listed comes with its reason. Raises `CliError` on creation if an argument names nothing.
    """

    def __init__(self, arguments: Sequence[str], is_recursive: bool) -> None:
        self._arguments = arguments
        self._is_recursive = is_recursive
        self._entered: set[str] = set()
        self.num_hidden = 0
        self.num_others = 0
        for argument in arguments:
            if not os.path.lexists(argument) and not _matches(argument):
                raise CliError(f"No image, folder or pattern matches '{argument}': check its spelling", USAGE)

    def __iter__(self) -> Iterator[FoundImage]:
        for argument in self._arguments:
            paths = [argument] if os.path.lexists(argument) else _matches(argument)
            for path in paths:
                if os.path.isdir(path):
                    yield from self._walk(path)
                elif is_image_name(path) and _can_be_image(path):
                    yield FoundImage(os.path.normpath(path))
                else:
                    self.num_others += 1

    @property
    def passed_over(self) -> str:
        """«3 hidden and 2 other files passed over», or nothing."""
        kinds = [f"{n} {kind}" for n, kind in ((self.num_hidden, "hidden"), (self.num_others, "other")) if n]
        return f"{' and '.join(kinds)} files passed over" if kinds else ""

    def _walk(self, top: str) -> Iterator[FoundImage]:
        errors: list[OSError] = []
        for folder, subfolders, names in os.walk(top, onerror=errors.append, followlinks=True):
            if (real_path := os.path.realpath(folder)) in self._entered:
                subfolders.clear()
                continue
            self._entered.add(real_path)
            self.num_hidden += sum(name.startswith(".") for name in subfolders + names)
            subfolders[:] = sorted(name for name in subfolders if self._is_recursive and not name.startswith("."))
            for name in sorted(name for name in names if not name.startswith(".")):
                path = os.path.join(folder, name)
                if is_image_name(name) and _can_be_image(path):
                    yield FoundImage(os.path.normpath(path))
                else:
                    self.num_others += 1
        for error in errors:
            yield FoundImage(os.path.normpath(error.filename or top), error.strerror or str(error))


def first_folder(arguments: Sequence[str]) -> str:
    """The folder of the first argument: itself, its parent, or the part of a pattern before its first star."""
    first = arguments[0]
    if os.path.isdir(first):
        return first
    if not os.path.lexists(first):
        while glob.has_magic(first):
            first = os.path.dirname(first)
        return first or "."
    return os.path.dirname(first) or "."


def _matches(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []


def _can_be_image(path: str) -> bool:
    """A regular file, or a broken link (its reading fails with a reason); never a pipe or a device."""
    return os.path.isfile(path) or not os.path.exists(path)

"""Finding images: files, folders and patterns to one sorted walk that never follows a loop.

Knows names only; what an image holds is the service's to judge.
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
class Found:
    """An image's path as the arguments spell it, or a folder that can't be listed and the reason."""

    path: str
    folder_reason: str | None = None


def extension_of(name: str) -> str:
    """The extension in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def is_image_name(name: str) -> bool:
    return extension_of(name) in MEDIA_TYPES


class ImageWalk:
    """All images under `arguments`, folder by folder, names sorted; counts what it passes over.

    Folders are entered once, also where symbolic links lead to them again. One folder's names are held at
    a time. Raises `CliError` on creation if an argument names nothing.
    """

    def __init__(self, arguments: Sequence[str], is_recursive: bool) -> None:
        self._arguments = arguments
        self._is_recursive = is_recursive
        self._entered: set[tuple[int, int]] = set()
        self.num_hidden = 0
        self.num_others = 0
        for argument in arguments:
            if not os.path.lexists(argument) and not _matches(argument):
                raise CliError(f"No image, folder or pattern matches '{argument}': check its spelling", USAGE)

    def __iter__(self) -> Iterator[Found]:
        for argument in self._arguments:
            paths = [argument] if os.path.lexists(argument) else _matches(argument)
            for path in paths:
                if os.path.isdir(path):
                    yield from self._walk(path)
                elif is_image_name(path) and _can_be_image(path):
                    yield Found(os.path.normpath(path))
                else:
                    self.num_others += 1

    @property
    def passed_over(self) -> str:
        """«3 hidden and 2 other files passed over», or nothing."""
        kinds = [f"{n} {kind}" for n, kind in ((self.num_hidden, "hidden"), (self.num_others, "other")) if n]
        return f"{' and '.join(kinds)} files passed over" if kinds else ""

    def _walk(self, top: str) -> Iterator[Found]:
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            try:
                entries = self._enter(folder)
            except OSError as exc:
                yield Found(os.path.normpath(folder), exc.strerror or str(exc))
                continue
            subfolders = []
            for entry in entries:
                if entry.name.startswith("."):
                    self.num_hidden += 1
                elif _is_folder(entry):
                    subfolders.append(entry.path)
                elif is_image_name(entry.name) and _can_be_image(entry.path):
                    yield Found(os.path.normpath(entry.path))
                else:
                    self.num_others += 1
            if self._is_recursive:
                waiting.extend(reversed(subfolders))

    def _enter(self, folder: str) -> list[os.DirEntry[str]]:
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in self._entered:
            return []
        self._entered.add((stat.st_dev, stat.st_ino))
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)


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


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _can_be_image(path: str) -> bool:
    """A regular file, or a broken link (its reading fails with a reason); never a pipe or a device."""
    return os.path.isfile(path) or not os.path.exists(path)

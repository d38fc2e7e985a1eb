"""Finding images: a sorted walk over files, folders and patterns that never follows a loop.

An image is known by its extension, any other file by how it begins. The service judges what an image holds.
"""

import glob
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from tempfile import TemporaryFile
from typing import BinaryIO, Final

from serve_app.cli.errors import USAGE, CliError
from serve_app.images.kinds import NUM_BYTES, Kind, kind_of

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
LEDGER_NAME = "serve-app-captions.jsonl"  # our own file in each folder of a run that writes text files
IMAGE_EXTENSIONS = frozenset(MEDIA_TYPES) | {".jfif", ".jpe", ".jif", ".apng", ".mpo", ".heic", ".heif", ".jxl"}
_LONGEST_PATH: Final = 8192  # bytes, in which a list between NUL bytes has one
# What captioners' folders are full of: not opened to see that it is no image.
_NO_IMAGES: Final = frozenset(
    (
        ".txt", ".caption", ".tags", ".json", ".jsonl", ".csv", ".tsv", ".md", ".html", ".yaml", ".yml", ".toml",
        ".py", ".log", ".npy", ".npz", ".safetensors", ".parquet", ".tar", ".zip",
    )
)  # fmt: skip
# Thumbnails and deleted files of file servers and operating systems.
_FOREIGN_FOLDERS: Final = frozenset(
    (
        "@eadir", "__macosx", "#recycle", "@recycle", "$recycle.bin", "lost+found", "#snapshot", "@tmp",
        "system volume information",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image's path or address as the arguments lead to it. What can't be captioned has a code and a reason."""

    path: str
    error_code: str | None = None
    reason: str = ""


def extension_of(name: str) -> str:
    """The extension in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def is_address(argument: str) -> bool:
    return argument.startswith(("http://", "https://"))


class ImageWalk:
    """All images under `arguments`, folder by folder, names sorted. Counts what it passes over.

    An argument is an address, a file, a folder or a pattern. Each folder is entered once, also where symbolic links
    lead to it again. One folder's names are held at a time. `excluded` are patterns of names and of paths. What is
    an image but not one that services take comes with a reason, and so does a folder that can't be listed. Raises
    `CliError` on creation if an argument names nothing.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        is_recursive: bool = True,
        excluded: Sequence[str] = (),
        listed: "FileList | None" = None,
        is_counting: bool = False,
    ) -> None:
        """`is_counting`: in any order, so that no folder's names are held."""
        self._arguments = arguments
        self._listed = listed
        self._is_counting = is_counting
        self._is_recursive = is_recursive
        self._excluded = [os.path.normpath(pattern) for pattern in excluded]
        self._entered: set[str] = set()
        self.num_hidden = 0
        self.num_others = 0
        for argument in arguments:
            if not is_address(argument) and next(iter(_matches(argument)), None) is None:
                raise CliError(f"No image, folder or pattern matches '{argument}': check its spelling", USAGE)

    def __iter__(self) -> Iterator[FoundImage]:
        for argument in self._arguments:
            for path in [argument] if is_address(argument) else _matches(argument):
                yield from self._named(path)
        for path in filter(None, self._listed or ()):
            if is_address(path) or os.path.lexists(path):
                yield from self._named(path)
            else:
                yield FoundImage(_plain(path), "unreadable_file", "there is no such file")

    @property
    def may_repeat(self) -> bool:
        """Whether an image may come twice: within one argument none does."""
        return self._listed is not None or len(self._arguments) > 1

    @property
    def passed_over(self) -> str:
        """«3 hidden and 2 other files passed over», or nothing."""
        kinds = [f"{n} {kind}" for n, kind in ((self.num_hidden, "hidden"), (self.num_others, "other")) if n]
        return f"{' and '.join(kinds)} files passed over" if kinds else ""

    def _named(self, path: str) -> Iterator[FoundImage]:
        if is_address(path):
            yield FoundImage(path)
        elif os.path.isdir(path):
            yield from self._walk(path)
        else:
            yield from self._judged(path)

    def _walk(self, top: str) -> Iterator[FoundImage]:
        """The images of a folder and, where it is recursive, of those below it."""
        waiting = [top]
        while waiting:
            folder, subfolders = waiting.pop(), list[str]()
            if (real_path := os.path.realpath(folder)) in self._entered:
                continue
            self._entered.add(real_path)
            try:
                yield from self._files(folder, subfolders)
            except OSError as exc:
                reason = f"the folder can't be listed: {exc.strerror or exc}"
                yield FoundImage(_plain(folder), "unreadable_folder", reason)
            waiting += [os.path.join(folder, name) for name in sorted(subfolders, reverse=True)]

    def _files(self, top: str, subfolders: list[str]) -> Iterator[FoundImage]:
        """The images in a folder. The names of the folders in it go to `subfolders`."""
        names, links = list[str](), set[str]()
        with os.scandir(top) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    self.num_hidden += 1
                elif _is_folder(entry):
                    if self._is_entered(top, name):
                        subfolders.append(name)
                elif self._is_counting:
                    yield from self._judged(os.path.join(top, name), is_file=_is_file(entry))
                else:
                    names.append(name)
                    if not _is_file(entry):
                        links.add(name)
        names.sort()
        for name in names:
            yield from self._judged(os.path.join(top, name), is_file=name not in links)

    def _is_entered(self, folder: str, name: str) -> bool:
        if not self._is_recursive or name.startswith(".") or name.lower() in _FOREIGN_FOLDERS:
            return False
        return not (self._excluded and self._is_excluded(os.path.join(folder, name)))

    def _judged(self, path: str, *, is_file: bool = False) -> Iterator[FoundImage]:
        """What is at `path` as an image, as one that can't be taken, or not at all.

        `is_file`: it is known to be a file of its own, so that nobody need look.
        """
        if os.path.basename(path) == LEDGER_NAME:
            return
        if (self._excluded and self._is_excluded(path)) or not (is_file or _can_be_image(path)):
            self.num_others += 1
        elif extension_of(path) in MEDIA_TYPES:
            yield FoundImage(_plain(path))
        elif (kind := _kind_of_file(path)) is None or not kind.is_image:
            self.num_others += 1
        elif kind.media_type:
            yield FoundImage(_plain(path))
        else:
            reason = f"the file is {kind.name}, which no service takes: convert it to JPEG or PNG, or --exclude it"
            yield FoundImage(_plain(path), "unsupported_image", reason)

    def _is_excluded(self, path: str) -> bool:
        path = os.path.normpath(path)
        names = (os.path.basename(path), path)
        return any(fnmatchcase(name, pattern) for pattern in self._excluded for name in names)


class FileList:
    """The paths and addresses that a file lists, one a line, or between NUL bytes as `find -print0` writes them.

    It is read anew for each iteration. `-` is standard input; that, and a pipe, is copied to a temporary file first.
    """

    def __init__(self, path: str) -> None:
        try:
            listed: BinaryIO = sys.stdin.buffer if path == "-" else open(path, "rb")  # noqa: SIM115 -- kept open
            if path == "-" or not stat.S_ISREG(os.fstat(listed.fileno()).st_mode):
                copy = TemporaryFile()  # noqa: SIM115
                shutil.copyfileobj(listed, copy)
                copy.flush()
                listed = copy
        except OSError as exc:
            raise CliError(f"--files-from {path} can't be read: {exc.strerror}", USAGE) from exc
        self._file = listed

    def __iter__(self) -> Iterator[str]:
        fd = self._file.fileno()
        end = b"\0" if b"\0" in os.pread(fd, _LONGEST_PATH, 0) else b"\n"
        rest, offset = b"", 0
        while piece := os.pread(fd, 1 << 16, offset):
            offset += len(piece)
            *entries, rest = (rest + piece).split(end)
            yield from map(_path_of, filter(None, entries))
        if rest:
            yield _path_of(rest)


def _path_of(entry: bytes) -> str:
    return os.fsdecode(entry.removesuffix(b"\r"))


def _matches(argument: str) -> Iterator[str]:
    """What an argument names: itself, if that is there, or else what its pattern finds, sorted."""
    if os.path.lexists(argument):
        yield argument
    elif glob.has_magic(argument):
        yield from _expanded("", argument.split(os.sep))


def _expanded(folder: str, parts: Sequence[str]) -> Iterator[str]:
    """The paths below `folder` that the parts of a pattern lead to. A name that is there stands for itself."""
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    literal = os.path.join(folder, part) if folder else part or os.sep
    if os.path.lexists(literal):
        yield from _expanded(literal, rest)
        return
    pattern = os.path.join(glob.escape(folder), part)
    for path in _globbed(pattern, only_folders=bool(rest)) if glob.has_magic(part) else ():
        yield from _expanded(path, rest)


def _globbed(pattern: str, only_folders: bool) -> Iterable[str]:
    paths = sorted(path.rstrip(os.sep) for path in glob.iglob(pattern, recursive=True))
    if pattern == "**":  # which doesn't name the folder that it begins in
        paths.insert(0, "")
    return (path for path in paths if not only_folders or not path or os.path.isdir(path))


def _plain(path: str) -> str:
    """Without `./` and doubled slashes. What stands before `..` stays: it may be a link that leads elsewhere."""
    parts = [part for part in path.split(os.sep) if part not in ("", ".")]
    return (os.sep if path.startswith(os.sep) else "") + os.sep.join(parts)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file(follow_symlinks=False)
    except OSError:
        return False


def _can_be_image(path: str) -> bool:
    """A regular file, or a broken link (its reading fails with a reason); never a pipe or a device."""
    return os.path.isfile(path) or not os.path.exists(path)


def _kind_of_file(path: str) -> Kind | None:
    """None where nothing is known of it, as where it can't be read."""
    extension = extension_of(path)
    if extension in _NO_IMAGES:
        return None
    try:
        with open(path, "rb") as file:
            return kind_of(file.read(NUM_BYTES), extension)
    except OSError:
        return None

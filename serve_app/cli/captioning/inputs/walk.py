"""Finding images: a sorted walk over files, folders, stores and patterns that never follows a loop.

An image is known by its extension, any other file by how it begins. The service judges what an image holds.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from serve_app.cli.captioning.inputs import containers, datasets
from serve_app.cli.captioning.inputs.image import FoundImage
from serve_app.cli.captioning.inputs.lists import FileList
from serve_app.cli.captioning.inputs.patterns import matches
from serve_app.cli.captioning.inputs.stores import Store
from serve_app.cli.captioning.inputs.tables import Columns
from serve_app.cli.captioning.names import IMAGE_EXTENSIONS, LEDGER_NAME, MEDIA_TYPES, extension_of
from serve_app.cli.captioning.places import is_address, is_remote
from serve_app.cli.errors import USAGE, CliError
from serve_app.images.kinds import NUM_BYTES, Kind, kind_of

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
class Inputs:
    """What a command line names. An argument is an address, a file, a folder, a pattern, a store's URL, a tar or a
    table; `dataset` is a Hugging Face dataset and `split` one of its parts. `excluded` are patterns of names, paths.
    """

    arguments: Sequence[str] = ()
    listed: FileList | None = None
    dataset: str | None = None
    split: str | None = None
    columns: Columns = Columns()  # noqa: RUF009 -- frozen
    excluded: Sequence[str] = ()
    is_recursive: bool = True

    @property
    def is_single(self) -> bool:
        """Whether it is one image by its name."""
        if self.listed or self.dataset or len(self.arguments) != 1 or containers.is_container(self.arguments[0]):
            return False
        return is_address(self.arguments[0]) or os.path.isfile(self.arguments[0])


class ImageWalk:
    """All images of the inputs, folder by folder, names sorted. Counts what it passes over.

    Each folder is entered once, also where symbolic links lead to it again. One folder's names are held at a time.
    What is an image but not one that services take comes with a reason, and so does a folder that can't be listed.
    Raises `CliError` on creation if an argument names nothing.
    """

    def __init__(self, inputs: Inputs, *, is_counting: bool = False) -> None:
        """`is_counting`: in any order and without bytes, so that no folder's names are held."""
        self._inputs = inputs
        self._arguments = [path for argument in inputs.arguments for path in containers.spelled_out(argument)]
        self._is_counting = is_counting
        self._excluded = [os.path.normpath(pattern) for pattern in inputs.excluded]
        self._entered: set[str] = set()
        self.num_hidden = 0
        self.num_others = 0
        self.num_containers = 0
        for argument in [] if is_counting else self._arguments:
            if not is_address(argument) and next(self._matches(argument), None) is None:
                raise CliError(f"No image, folder or pattern matches '{argument}': check its spelling", USAGE)

    def __iter__(self) -> Iterator[FoundImage]:
        for argument in self._arguments:
            for path, is_folder in self._matches(argument):
                yield from self._named(path, is_folder)
        for path in filter(None, self._inputs.listed or ()):
            if is_remote(path) or os.path.lexists(path):
                yield from self._named(path, os.path.isdir(path))
            else:
                yield FoundImage(_plain(path), "unreadable_file", "there is no such file")
        if self._inputs.dataset:
            yield from self._of_dataset(self._inputs.dataset)

    @property
    def may_repeat(self) -> bool:
        """Whether an image may come twice: in one folder or pattern none does, but a tar may have a name twice."""
        is_one = len(self._arguments) == 1 and not (self._inputs.listed or self._inputs.dataset)
        return not is_one or containers.is_container(self._arguments[0])

    @property
    def passed_over(self) -> str:
        """«3 hidden and 2 other files passed over», or nothing."""
        numbers = ((self.num_hidden, "hidden"), (self.num_others, "other"))
        kinds = [f"{n} {kind}" for n, kind in numbers if n]
        parts = [f"{' and '.join(kinds)} files passed over"] if kinds else []
        if self.num_containers:
            parts.append(f"{self.num_containers} tars or tables not opened: name them, as in 'folder/*.tar'")
        return "; ".join(parts)

    def _matches(self, argument: str) -> Iterator[tuple[str, bool]]:
        """What an argument leads to, and whether it is a folder."""
        if is_address(argument):
            yield argument, False
        elif is_remote(argument):
            for entry in Store(argument).matches():
                yield entry.url, entry.is_folder
        else:
            for path in matches(argument):
                yield path, os.path.isdir(path)

    def _named(self, path: str, is_folder: bool) -> Iterator[FoundImage]:
        if is_folder and datasets.is_saved_dataset(path):
            yield from self._of_dataset(path)
        elif is_folder:
            yield from self._walk(path)
        elif containers.is_container(path):
            yield from containers.images(path, self._inputs.columns, is_counting=self._is_counting)
        elif is_remote(path):
            yield FoundImage(path)
        else:
            yield from self._judged(path)

    def _of_dataset(self, name: str) -> Iterator[FoundImage]:
        yield from datasets.images(name, self._inputs.split, self._inputs.columns, is_counting=self._is_counting)

    def _walk(self, top: str) -> Iterator[FoundImage]:
        """The images of a folder and, where it is recursive, of those below it."""
        waiting = [top]
        while waiting:
            folder, subfolders = waiting.pop(), list[str]()
            real_path = folder if is_remote(folder) else os.path.realpath(folder)
            if real_path in self._entered:
                continue
            self._entered.add(real_path)
            try:
                yield from (
                    self._of_store(folder, subfolders) if is_remote(folder) else self._files(folder, subfolders)
                )
            except OSError as exc:
                reason = f"the folder can't be listed: {exc.strerror or exc}"
                yield FoundImage(_plain(folder), "unreadable_folder", reason)
            waiting += sorted(subfolders, reverse=True)

    def _of_store(self, top: str, subfolders: list[str]) -> Iterator[FoundImage]:
        """The images in a store's folder, by their names alone: to look into each file would cost a request."""
        for entry in Store(top).entries():
            if entry.name.startswith("."):
                self.num_hidden += 1
            elif entry.is_folder:
                if self._is_entered(entry.url, entry.name):
                    subfolders.append(entry.url)
            elif self._excluded and self._is_excluded(entry.url):
                self.num_others += 1
            elif extension_of(entry.name) in IMAGE_EXTENSIONS:
                yield FoundImage(entry.url)
            else:
                self._pass_over(entry.name)

    def _pass_over(self, name: str) -> None:
        if containers.is_container(name):
            self.num_containers += 1
        else:
            self.num_others += 1

    def _files(self, top: str, subfolders: list[str]) -> Iterator[FoundImage]:
        """The images in a folder. The folders in it go to `subfolders`."""
        names, links = list[str](), set[str]()
        with os.scandir(top) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    self.num_hidden += 1
                elif _is_folder(entry):
                    path = os.path.join(top, name)
                    if self._is_entered(path, name):
                        subfolders.append(path)
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
        if not self._inputs.is_recursive or name.startswith(".") or name.lower() in _FOREIGN_FOLDERS:
            return False
        return not (self._excluded and self._is_excluded(folder))

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
            self._pass_over(path)
        elif kind.media_type:
            yield FoundImage(_plain(path))
        else:
            reason = f"the file is {kind.name}, which no service takes: convert it to JPEG or PNG, or --exclude it"
            yield FoundImage(_plain(path), "unsupported_image", reason)

    def _is_excluded(self, path: str) -> bool:
        path = os.path.normpath(path)
        names = (os.path.basename(path), path)
        return any(fnmatchcase(name, pattern) for pattern in self._excluded for name in names)


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

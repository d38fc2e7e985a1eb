"""A text file beside each image, as trainers read it: `a.txt` for `a.jpg`.

In each folder `serve-app-captions.jsonl` says which texts are ours, which image they are of, and what failed. It
keeps a text with its image when a neighbour of the same name comes or goes, and one that was corrected by hand.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Literal

from serve_app.cli.captioning.names import IMAGE_EXTENSIONS, LEDGER_NAME, extension_of
from serve_app.cli.captioning.outputs.ledger import Ledger
from serve_app.cli.captioning.outputs.locks import lock
from serve_app.cli.captioning.outputs.output import FolderRefused, State
from serve_app.cli.captioning.outputs.rows import CaptionSettings, Row
from serve_app.cli.captioning.places import is_remote, place
from serve_app.cli.errors import CliError

Adding = Literal["append", "prepend"]
_MOST_OPEN = 64  # folders without images on their way that stay open


class TextFiles:
    """The texts of any number of folders. Each is locked from its first image to its last.

    An image whose text is there is done, whoever wrote it, except for one that was cut at another `max_tokens` and is
    still as it was written.
    """

    def __init__(
        self,
        settings: CaptionSettings,
        max_tokens: int | None = None,
        *,
        is_overwriting: bool = False,
        is_retrying: bool = False,
        extension: str = ".txt",
        fills_empty: bool = False,
        adding: Adding | None = None,
        into: tuple[str, str] | None = None,
    ) -> None:
        """`fills_empty`: a text without a word counts as missing. `adding`: captions go to the texts that are.

        `into`: the folder of images and the one that gets their texts in its place, with the same folders below it.
        """
        self._settings = settings
        self._max_tokens = max_tokens
        self._is_retrying = is_retrying
        self._extension = extension
        self._fills_empty = fills_empty
        self._adding = adding
        self._into = into
        self._is_overwriting = is_overwriting
        self._folders: dict[str, _Folder] = {}
        self._refused: dict[str, FolderRefused] = {}

    def state(self, path: str) -> State:
        """Raises `FolderRefused`."""
        if is_remote(path):
            raise FolderRefused(path, "a URL has no folder for a text: use --output FILE.jsonl")
        folder = self._opened(_folder_of(path))
        state = "new" if self._is_overwriting else folder.state(path)
        folder.num_on_their_way += state == "new" or (state == "failed" and self._is_retrying)
        return state

    def write(self, row: Row, data: bytes | None = None) -> Row:
        """The row as it was kept: a failure if its text couldn't be written."""
        try:
            folder = self._opened(_folder_of(row.file))
        except FolderRefused as refused:
            return row.as_failure("text_not_written", refused.reason)
        folder.num_on_their_way -= 1
        return folder.write(row)

    def sync(self) -> None:
        for folder in list(self._folders.values()):
            with suppress(ValueError):  # closed meanwhile, which syncs it as well
                folder.sync()

    def close(self) -> None:
        for folder in self._folders.values():
            folder.close()

    def _opened(self, path: str) -> "_Folder":
        if path in self._refused:
            raise self._refused[path]
        if path not in self._folders:
            idle = [name for name, folder in self._folders.items() if not folder.num_on_their_way]
            for name in idle[: max(0, len(self._folders) - _MOST_OPEN)]:
                self._folders.pop(name).close()
            texts = _Texts(path, self._extension, self._settings, self._max_tokens)
            try:
                self._folders[path] = _Folder(self._folder_of_texts(path), texts, self._fills_empty, self._adding)
            except FolderRefused as refused:
                self._refused[path] = refused
                raise
        return self._folders[path]

    def _folder_of_texts(self, path: str) -> str:
        if self._into is None:
            if not os.path.isdir(path):
                raise FolderRefused(
                    path, "this is no folder for texts: use --texts-in FOLDER, or --output FILE.jsonl"
                )
            return path
        images, texts = self._into
        folder = os.path.normpath(os.path.join(texts, os.path.relpath(path, images)))
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as exc:
            raise FolderRefused(path, f"{folder} can't be made for its texts: {exc.strerror}") from exc
        return folder


class _Folder:
    """One folder of texts. Raises `FolderRefused` on creation where they can't be written."""

    def __init__(self, path: str, texts: "_Texts", fills_empty: bool, adding: Adding | None) -> None:
        self.num_on_their_way = 0
        self._path = path
        self._texts = texts
        self._fills_empty = fills_empty
        self._adding = adding
        if not os.access(path, os.W_OK | os.X_OK):
            raise FolderRefused(path, "no text can be written here: it is read-only")
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as exc:
            raise FolderRefused(path, f"no text can be written here: {exc.strerror}") from exc
        try:
            lock(self._fd, path)
            is_there = os.path.exists(os.path.join(path, LEDGER_NAME))
            self._ledger = self._open_ledger() if is_there else None
        except CliError as exc:
            os.close(self._fd)
            raise FolderRefused(path, exc.message) from exc

    def state(self, path: str) -> State:
        name = os.path.basename(path)
        text = self._texts.of(name)
        if self._adding:
            if self._ledger and self._texts.was_added(name, lambda: self._read(text)):
                return "done"
            return self._ledger_state(path)
        if self._texts.is_of_nobody(name) and self._is_there(self._texts.of_stem(name)):
            return "done"
        if self._is_there(text):
            return "new" if self._texts.is_to_be_asked_again(name, lambda: self._read(text)) else "done"
        return self._ledger_state(path)

    def write(self, row: Row) -> Row:
        """The row as it was kept. What is added to a text is in the ledger before it is in the text."""
        self._ledger = self._ledger or self._open_ledger()
        if row.is_failed:
            return self._ledger.write(row)
        text, caption = self._texts.of(os.path.basename(row.file)), row.written
        row = replace(row, text=text)
        if self._adding and (before := self._read(text).strip()):
            row = self._ledger.write(replace(row, before=before))
            caption = _joined(before, caption) if self._adding == "append" else _joined(caption, before)
        try:
            self._write_text(text, caption)
        except OSError as exc:
            row = row.as_failure("text_not_written", f"its text {text} can't be written: {exc.strerror}")
        return row if row.before is not None else self._ledger.write(row)

    def _ledger_state(self, path: str) -> State:
        return "failed" if self._ledger and self._ledger.state(path) == "failed" else "new"

    def sync(self) -> None:
        if self._ledger:
            self._ledger.sync()

    def close(self) -> None:
        try:
            if self._ledger:
                self._ledger.close()
        finally:
            os.close(self._fd)

    def _open_ledger(self) -> Ledger:
        path = os.path.join(self._path, LEDGER_NAME)
        return Ledger(path, self._texts.settings, self._texts.max_tokens, see=self._texts.see)

    def _is_there(self, name: str) -> bool:
        is_file = os.path.isfile(os.path.join(self._path, name))
        return is_file and not (self._fills_empty and not self._read(name).strip())

    def _read(self, name: str) -> str:
        with suppress(OSError), open(os.path.join(self._path, name), encoding="utf-8", errors="replace") as file:
            return file.read()
        return ""

    def _write_text(self, name: str, caption: str) -> None:
        """All of the text or none: a new file takes the name only when it is whole."""
        mark = blake2b(os.fsencode(name), digest_size=8).hexdigest()
        unfinished = os.path.join(self._path, f".serve-app-{mark}.tmp")
        try:
            with open(unfinished, "wb") as file:
                file.write(caption.encode("utf-8", "replace") + b"\n")
            os.replace(unfinished, os.path.join(self._path, name))
        except OSError:
            with suppress(OSError):
                os.unlink(unfinished)
            raise


@dataclass
class _Texts:
    """Which text belongs to which image of a folder, by the names in it and by what was written before.

    `a.txt` is the text of `a.jpg`. Where images would share a text, each has its own, `a.jpg.txt` and `a.png.txt`,
    but for one that has `a.txt` already.
    """

    folder: str
    extension: str
    settings: CaptionSettings
    max_tokens: int | None
    _text_of: dict[str, str] = field(default_factory=dict)  # image to text, where the image's name doesn't say it
    _owned: set[str] = field(default_factory=set)  # the texts among them
    _cut: dict[str, str] = field(default_factory=dict)  # image to the text that was cut at another length
    _added: dict[str, str | None] = field(default_factory=dict)  # image to what stood there before, by these settings
    _contested: frozenset[str] | None = None

    def see(self, row: Row) -> bool:
        """Take in a row of the folder's ledger, which counts."""
        name = os.path.basename(row.file)
        if row.is_failed or row.text is None or not row.text.endswith(self.extension):
            return True
        if row.text != self.of_stem(name) or self._is_contested(name):
            self._text_of[name] = row.text
            self._owned.add(row.text)
        self._cut.pop(name, None)
        if row.is_cut and row.max_tokens != self.max_tokens:
            self._cut[name] = row.written
        if row.settings == self.settings:
            self._added[name] = row.before
        return True

    def of(self, name: str) -> str:
        if text := self._text_of.get(name):
            return text
        return f"{name}{self.extension}" if self._is_contested(name) else self.of_stem(name)

    def of_stem(self, name: str) -> str:
        return f"{_stem(name)}{self.extension}"

    def is_of_nobody(self, name: str) -> bool:
        """Whether nothing says that the text of this image's stem is another image's."""
        return self._is_contested(name) and name not in self._text_of and self.of_stem(name) not in self._owned

    def is_to_be_asked_again(self, name: str, read: Callable[[], str]) -> bool:
        return name in self._cut and read().strip() == self._cut[name].strip()

    def was_added(self, name: str, read: Callable[[], str]) -> bool:
        """Whether this run's caption is in the text: a kill may come between the row and the text."""
        return name in self._added and read().strip() != (self._added[name] or "")

    def _is_contested(self, name: str) -> bool:
        if self._contested is None:
            self._contested = _contested_stems(self.folder)
        return _stem(name).casefold() in self._contested


def _joined(first: str, second: str) -> str:
    """Two sentences, or two lists of tags: with a comma where the first doesn't end like a sentence."""
    return f"{first.strip()}{' ' if first.rstrip().endswith(tuple('.!?…。')) else ', '}{second.strip()}"


def _folder_of(path: str) -> str:
    return os.path.dirname(place(path))


def _stem(name: str) -> str:
    """What the text of an image is called after."""
    return os.path.splitext(name)[0] if extension_of(name) in IMAGE_EXTENSIONS else name


def _contested_stems(folder: str) -> frozenset[str]:
    """Stems, in one case, that several images have, or that are an image's whole name (a.jpg and a.jpg.jpg)."""
    seen: set[str] = set()
    contested: set[str] = set()
    try:
        names = [name.casefold() for name in os.listdir(folder) if extension_of(name) in IMAGE_EXTENSIONS]
    except OSError:
        return frozenset()
    for stem in map(_stem, names):
        (contested if stem in seen else seen).add(stem)
    return frozenset(contested | (seen & set(names)))

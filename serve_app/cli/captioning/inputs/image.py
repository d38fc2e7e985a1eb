"""An image of a run: where it is, how its bytes are read, and what stands beside it."""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from serve_app.cli.captioning.inputs import stores
from serve_app.cli.captioning.places import is_address, is_remote

# So that `concurrency` images always fit in memory. Services take far less.
LARGEST_FILE_BYTES: Final = 256 * 1024 * 1024
_LONGEST_TEXT: Final = 20_000  # characters


class Uncountable(Exception):
    """How many images there are isn't known before all of them were read."""


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image's path or address as the arguments lead to it. What can't be captioned has a code and a reason.

    One that came in a shard, a table or a dataset has its bytes as `data` and what stands beside it as `text`; its
    path leads through that like through a folder.
    """

    path: str
    error_code: str | None = None
    reason: str = ""
    data: bytes | None = field(default=None, repr=False)
    text: str = ""

    @property
    def is_fetched_by_service(self) -> bool:
        return self.data is None and is_address(self.path)

    @property
    def inner_path(self) -> str:
        """Its path in its archive, or its path."""
        return self.path.partition("::")[0] if is_remote(self.path) else self.path

    def read(self) -> bytes:
        """Its bytes. Raises `OSError` where they can't be had or are too many."""
        if self.data is not None:
            return self.data
        if is_remote(self.path):
            data = stores.read(self.path, LARGEST_FILE_BYTES + 1)
            _check_size(len(data))
            return data
        with open(self.path, "rb") as file:
            _check_size(os.fstat(file.fileno()).st_size)
            return file.read(LARGEST_FILE_BYTES)

    def text_beside(self, extension: str) -> str:
        """What stands in the file beside it that has the extension in place of its own; nothing where none is."""
        if self.data is not None:
            return self.text
        inner = self.inner_path
        path = os.path.splitext(inner)[0] + extension + self.path.removeprefix(inner)
        with suppress(OSError):
            if is_remote(path):
                return stores.read(path, _LONGEST_TEXT).decode("utf-8", "replace").strip()
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read(_LONGEST_TEXT).strip()
        return ""


def _check_size(num_bytes: int) -> None:
    if num_bytes > LARGEST_FILE_BYTES:
        raise OSError(0, f"it has {num_bytes:,} bytes or more, and at most {LARGEST_FILE_BYTES:,} are sent")

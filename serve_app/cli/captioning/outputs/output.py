"""What every output does: says what is done, and keeps one row after the other."""

from dataclasses import dataclass
from typing import Literal, Protocol

from serve_app.cli.captioning.outputs.rows import Row

State = Literal["new", "done", "failed"]


class Output(Protocol):
    """A row is kept when `write` returns: a process that is killed afterwards loses nothing."""

    def state(self, path: str) -> State:
        """What an earlier run made of the image. Raises `FolderRefused`."""

    def write(self, row: Row, data: bytes | None = None) -> Row:
        """Keep an image's row, with its bytes where the output holds images. The row as it was kept."""

    def sync(self) -> None:
        """Bring to the disk what a power cut would lose. Called in a thread, while others write."""

    def close(self) -> None:
        """End the output, so that others can read it."""


@dataclass(eq=False)
class FolderRefused(Exception):
    """No image of this folder can be written."""

    folder: str
    reason: str

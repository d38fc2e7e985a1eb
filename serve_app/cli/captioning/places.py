"""Where an image is, however its path was spelled: links among its folders are followed, its own name is kept.

A row names its image relative to the row's file, so that both can move together, and the same image is known again
from any working folder.
"""

import os
import re
from functools import lru_cache
from hashlib import blake2b
from typing import Final

_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_address(path: str) -> bool:
    """Whether the service fetches it."""
    return path.startswith(("http://", "https://"))


def is_remote(path: str) -> bool:
    """Whether it is an address or a URL of a store, and no path on this machine."""
    return _SCHEME.match(path) is not None


def place(path: str) -> str:
    """The absolute path, or the URL itself."""
    if is_remote(path):
        return path
    folder, name = os.path.split(os.path.join(os.getcwd(), path))
    return os.path.join(_real(folder), name)


def key(place: str) -> int:
    """64 bits that stand for a place."""
    return int.from_bytes(blake2b(place.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def relative(place: str, folder: str) -> str:
    """How a row in the folder, a real path, spells the place."""
    return place if is_remote(place) else os.path.relpath(place, folder)


def from_row(file: str, folder: str) -> str:
    """The place that a row in the folder spells."""
    return file if is_remote(file) else os.path.normpath(os.path.join(folder, file))


@lru_cache(maxsize=1024)
def _real(folder: str) -> str:
    return os.path.realpath(folder)

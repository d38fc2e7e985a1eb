"""Which images look alike, by their perceptual hashes (pHash, by imagehash)."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from serve_app.cli.captioning.libraries import library
from serve_app.cli.captioning.outputs.rows import Row
from serve_app.cli.captioning.shrink import decoded

MOST_KNOWN: Final = 100_000  # images, the latest
_EDGE_PX: Final = 128  # of what is hashed, of which the hash looks at 32


@dataclass(slots=True)
class Hashes:
    """The perceptual hashes of the images of which the same is asked, and their rows."""

    bits: "np.ndarray[Any, np.dtype[np.uint64]]" = field(default_factory=lambda: np.zeros(256, np.uint64))
    rows: list[asyncio.Future[Row]] = field(default_factory=list)

    @staticmethod
    def check() -> None:
        """Raises `CliError` where the library is missing."""
        library("imagehash")

    def nearest(self, bits: int, most_different: int) -> asyncio.Future[Row] | None:
        """The row of the image that differs least, if in at most so many bits."""
        if not self.rows:
            return None
        differences = np.bitwise_count(self.bits[: len(self.rows)] ^ np.uint64(bits))
        nearest = int(differences.argmin())
        return self.rows[nearest] if differences[nearest] <= most_different else None

    def add(self, bits: int, row: asyncio.Future[Row]) -> None:
        if len(self.rows) == MOST_KNOWN:
            self.rows.clear()
        elif len(self.rows) == len(self.bits):
            self.bits = np.concatenate((self.bits, np.zeros_like(self.bits)))
        self.bits[len(self.rows)] = bits
        self.rows.append(row)


def perceptual_hash(data: bytes) -> int | None:
    """64 bits that are alike for images that look alike; None for what can't be read."""
    image = decoded(data, _EDGE_PX)
    return None if image is None else int(str(library("imagehash").phash(image)), 16)

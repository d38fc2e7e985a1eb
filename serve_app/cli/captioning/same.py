"""Images that are the same, or nearly: captioned once, and the caption written for each.

The same are files of equal bytes. Nearly the same are images whose perceptual hashes differ in few bits, such as a
photograph that was scaled or compressed again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from cachetools import LRUCache

from serve_app.cli.captioning.outputs.rows import Row

if TYPE_CHECKING:
    pass

_MOST_KNOWN: Final = 100_000  # images, the latest

Asking = Callable[[], Awaitable[Row]]
_Future = asyncio.Future[Row]


class SameImages:
    """Knows the rows of the latest images by their bytes and, with `most_different` bits of 64, by how they look."""

    def __init__(self, most_different: int | None = None) -> None:
        if most_different is not None:
            from serve_app.cli.captioning.near import Hashes

            Hashes.check()
        self._most_different = most_different
        self._rows: LRUCache[bytes, _Future] = LRUCache(_MOST_KNOWN)
        self._hashes: LRUCache[bytes, Hashes] = LRUCache(1000)
        self.num_same = 0
        self.num_near = 0

    async def row(self, file: str, data: bytes, words: str, ask: Asking) -> Row:
        """The row of another image like this one, or what `ask` returns or raises. A failure is nobody else's.

        `words` are what is asked and written for this image, which may hold its name.
        """
        question = blake2b(words.encode("utf-8", "replace")).digest()
        digest = blake2b(data, digest_size=16, key=question).digest()
        if (first := self._rows.get(digest)) and (row := await _good(first)):
            self.num_same += 1
            return replace(row, file=file, same_as=row.file)
        own: _Future = asyncio.get_running_loop().create_future()
        self._rows[digest] = own
        try:
            row = await self._near_row(file, data, question, own) or await ask()
            own.set_result(row)
        finally:
            own.cancel()  # does nothing where there is a result
        return row

    async def _near_row(self, file: str, data: bytes, question: bytes, own: _Future) -> Row | None:
        if self._most_different is None:
            return None
        from serve_app.cli.captioning.near import Hashes, perceptual_hash

        bits = await asyncio.to_thread(perceptual_hash, data)
        if bits is None:
            return None
        hashes = self._hashes.setdefault(question, Hashes())
        if (first := hashes.nearest(bits, self._most_different)) and (row := await _good(first)):
            self.num_near += 1
            return replace(row, file=file, same_as=row.same_as or row.file)
        hashes.add(bits, own)
        return None


async def _good(first: _Future) -> Row | None:
    """The row, once it is there, unless it is a failure."""
    await asyncio.wait([first])
    return None if first.cancelled() or first.result().is_failed else first.result()

"""Images whose files have the same bytes: captioned once, and written for each."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import blake2b

from cachetools import LRUCache

from serve_app.cli.captioning.rows import Row

_MOST_KNOWN = 100_000  # images, the latest


class SameImages:
    """Knows the rows of the latest images by their bytes. `num_same` counts those that another's row was good for."""

    def __init__(self) -> None:
        self._rows: LRUCache[bytes, asyncio.Future[Row]] = LRUCache(_MOST_KNOWN)
        self.num_same = 0

    async def row(self, file: str, data: bytes, words: str, ask: Callable[[], Awaitable[Row]]) -> Row:
        """The row of another image with this `data`, or what `ask` returns or raises. A failure is nobody else's.

        `words` are what is asked and written for this image, which may hold its name.
        """
        digest = blake2b(data, digest_size=16, key=blake2b(words.encode("utf-8", "replace")).digest()).digest()
        if digest in self._rows:
            first: asyncio.Future[Row] = self._rows[digest]
            await asyncio.wait([first])
            if not first.cancelled() and not first.result().is_failed:
                self.num_same += 1
                return replace(first.result(), file=file)
        own: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._rows[digest] = own
        try:
            own.set_result(await ask())
        finally:
            own.cancel()  # does nothing where there is a result
        return own.result()

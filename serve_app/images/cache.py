"""Lets requests for the same URL share one fetch, and keeps its bytes for a short time.

Knows nothing about connections and policies. URLs may carry signatures: they stay in this process's memory, out of
logs and errors.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from cachetools import TLRUCache

_FORBIDS_KEEPING: Final = frozenset({"no-store", "no-cache", "private"})
_LARGEST_PART: Final = 4  # one image takes at most a quarter of the cache, so that it can't push out all others
_ENTRY_BYTES: Final = 500  # about what an entry costs besides its URL and its image


@dataclass(frozen=True, slots=True)
class Fetched:
    """An image's bytes as they arrived, and for how many seconds others may get them too."""

    data: bytes = field(repr=False)
    keep_s: float


def allowed_keep_s(cache_control: str, most_s: float) -> float:
    """For how many seconds an answer with this Cache-Control (RFC 9111) may be kept, at most `most_s`.

    The least of several ages counts; an age that isn't a number is 0.
    """
    ages = [most_s]
    for directive in cache_control.lower().split(","):
        name, _, value = (part.strip(' \t"') for part in directive.partition("="))
        if name in _FORBIDS_KEEPING:
            return 0.0
        if name in ("max-age", "s-maxage"):
            ages.append(float(value) if value.isascii() and value.isdigit() else 0.0)
    return min(ages)


class ImageCache:
    """Fetched bytes by URL, `max_bytes` of them at most; the least recently used goes first. `clock` says seconds."""

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._largest_entry = max_bytes // _LARGEST_PART
        self.entries: TLRUCache[str, _Entry] = TLRUCache(max_bytes, _expires_at, clock, getsizeof=_num_bytes)

    def get(self, url: str) -> bytes | None:
        """The bytes, if they are here and haven't expired."""
        entry = self.entries.get(url)
        return entry.fetched.data if entry else None

    def put(self, url: str, fetched: Fetched) -> None:
        """Replace the URL's entry; bytes that may not be kept, or are too large, leave none."""
        self.entries.pop(url, None)
        entry = _Entry(url, fetched)
        if _num_bytes(entry) <= self._largest_entry:
            self.entries[url] = entry


class _Entry(NamedTuple):
    url: str
    fetched: Fetched


def _num_bytes(entry: _Entry) -> int:
    return len(entry.fetched.data) + len(entry.url) + _ENTRY_BYTES


def _expires_at(_: str, entry: _Entry, now_s: float) -> float:
    return now_s + entry.fetched.keep_s


@dataclass(slots=True)
class _Shared:
    """A running fetch, and how many wait for it."""

    task: asyncio.Task[Fetched]
    started_s: float
    num_waiting: int = 0


class SharedFetches:
    """At most one fetch per URL that newcomers can join; its end fills the cache.

    Nobody joins a fetch older than `joinable_s`: it hangs, so later requests start one of their own.
    """

    def __init__(self, cache: ImageCache, joinable_s: float) -> None:
        self._cache = cache
        self._joinable_s = joinable_s
        self._running: dict[str, _Shared] = {}

    async def get(self, url: str, fetch: Callable[[], Coroutine[Any, Any, Fetched]]) -> bytes:
        """The URL's bytes, from the cache, the running fetch or a new one.

        Cancelling ends this wait; the fetch ends when nobody waits for it any more. All waiters get what it raises.
        """
        data = self._cache.get(url)
        if data is not None:
            return data
        shared = self._joined(url, fetch)
        shared.num_waiting += 1
        try:
            await asyncio.wait({shared.task})  # awaiting the task itself would cancel it for all
            return shared.task.result().data
        finally:
            shared.num_waiting -= 1
            if not shared.num_waiting:
                self._forget(url, shared)
                shared.task.cancel()

    async def close(self) -> None:
        """End the running fetches."""
        tasks = [shared.task for shared in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _joined(self, url: str, fetch: Callable[[], Coroutine[Any, Any, Fetched]]) -> _Shared:
        now_s = asyncio.get_running_loop().time()
        running = self._running.get(url)
        if running is not None and now_s - running.started_s < self._joinable_s:
            return running
        shared = self._running[url] = _Shared(asyncio.create_task(fetch()), now_s)
        shared.task.add_done_callback(lambda task: self._finish(url, shared))
        return shared

    def _finish(self, url: str, shared: _Shared) -> None:
        self._forget(url, shared)
        # Reading the exception also tells asyncio that it was seen, in case nobody waits any more.
        if not shared.task.cancelled() and shared.task.exception() is None:
            self._cache.put(url, shared.task.result())

    def _forget(self, url: str, shared: _Shared) -> None:
        if self._running.get(url) is shared:
            del self._running[url]

"""Ends a process when its engine is dead, and work when its way out is lost."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from serve_app.errors import EngineFailed, ReplicaDied
from serve_app.messages import Chunk, EventEncoder, GenerationRequest, StreamTotal, TokenizedPrompt, Write
from serve_app.replica.replica import Replica

logger = logging.getLogger("serve_app")

LAST_WORDS_S = 0.5  # for a direct lane's errors to reach its clients


class WatchedReplica:
    """Ends its process when the replica's engine is dead, because Ray notices that at once.

    The ingress then tries requests without output elsewhere; until a health check they would all fail. Nobody retries
    for the clients of a direct lane, so the process waits `last_words_s` while they get their errors.
    """

    def __init__(self, name: str, replica: Replica, last_words_s: float = 0.0) -> None:
        self._name = name
        self._replica = replica
        self._last_words_s = last_words_s
        self.is_ending = False

    async def answer(self, request: GenerationRequest) -> tuple[Chunk, ...]:
        async with self._watching():
            return await self._replica.answer(request)

    async def stream(self, request: GenerationRequest, encoder: EventEncoder, write: Write) -> StreamTotal:
        async with self._watching():
            return await self._replica.stream(request, encoder, write)

    async def tokenize(self, request: GenerationRequest) -> TokenizedPrompt:
        async with self._watching():
            return await self._replica.tokenize(request)

    async def check_health(self) -> None:
        """One failure is enough, where Ray Serve would wait for three."""
        async with self._watching():
            await self._replica.check_health()

    @asynccontextmanager
    async def _watching(self) -> AsyncIterator[None]:
        try:
            yield
        except EngineFailed:
            await self._end_if_engine_is_dead()
            raise

    async def _end_if_engine_is_dead(self) -> None:
        try:
            await self._replica.check_health()
        except EngineFailed as exc:
            if not self.is_ending:
                logger.error("model=%s: %s; this process ends, Ray Serve starts another", self._name, exc.message)
                if not self._last_words_s:
                    os._exit(1)
                asyncio.get_running_loop().call_later(self._last_words_s, os._exit, 1)


async def until_lost(work: Coroutine[Any, Any, StreamTotal], lost: "asyncio.Future[None]") -> StreamTotal:
    """The result of `work`. When `lost` is done, cancel the work and raise the error of `lost`."""
    task = asyncio.create_task(work)

    def stop(_: object) -> None:
        task.cancel()

    lost.add_done_callback(stop)
    try:
        return await task
    except asyncio.CancelledError:
        if lost.done() and (error := lost.exception()):
            raise ReplicaDied(*error.args) from None
        raise
    finally:
        lost.remove_done_callback(stop)

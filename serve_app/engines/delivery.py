"""One request's chunks on their way out of an engine, and its end: the last chunk, an error, or the deadline."""

import asyncio
from collections.abc import Iterable

from serve_app.errors import ServeAppError
from serve_app.messages import Chunk, Put


class Delivery:
    """Hands chunks to `put` until each of `num_answers` has ended. Used on the event loop alone.

    An engine calls it for all requests of a step, so an error of one request must not reach the others. What making a
    chunk or `put` raises ends this request only.
    """

    __slots__ = ("_end", "_num_open", "_put")

    def __init__(self, put: Put, num_answers: int) -> None:
        self._put = put
        self._num_open = num_answers
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def is_over(self) -> bool:
        return self._end.done()

    def chunks(self, chunks: Iterable[Chunk]) -> None:
        """The next chunks; ignored after the end."""
        if self._end.done():
            return
        try:
            for chunk in chunks:
                self._put(chunk)
                self._num_open -= chunk.finish_reason is not None
        except Exception as exc:  # noqa: BLE001 -- whatever it is, it belongs to the request and is raised there
            self.fail(exc)
            return
        if not self._num_open and not self._end.done():
            self._end.set_result(None)

    def fail(self, error: Exception) -> None:
        """End with this error, unless it has ended."""
        if not self._end.done():
            self._end.set_exception(error)

    async def wait(self, seconds_left: float, too_late: ServeAppError) -> None:
        """Return after the last chunk. Raises the error that ended it, or `too_late`."""
        timer = asyncio.get_running_loop().call_later(seconds_left, self.fail, too_late)
        try:
            await self._end
        finally:
            timer.cancel()

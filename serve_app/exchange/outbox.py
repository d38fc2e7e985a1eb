"""Events on their way to one client. Those that wait for a slow client are joined."""

import asyncio

from serve_app.errors import ClientTooSlow


class Outbox:
    """Bytes that wait to be sent, at most about `max_bytes`. One reader; writing never waits."""

    __slots__ = ("_ending", "_is_ended", "_max_bytes", "_num_bytes", "_num_writes", "_reader", "_silence", "_waiting")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._waiting: list[bytes] = []
        self._num_bytes = self._num_writes = 0
        self._reader: asyncio.Future[None] | None = None
        self._ending: asyncio.Future[None] | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._is_ended = False

    def write(self, data: bytes) -> None:
        """Raises `ClientTooSlow` if more waits than the bound allows: all requests share the memory."""
        self._num_bytes += len(data)
        self._num_writes += 1
        if self._num_bytes > self._max_bytes:
            raise ClientTooSlow(
                f"the client left {self._num_bytes} bytes of its answer unread, and {self._max_bytes} are kept: "
                "read faster, or ask without stream"
            )
        self._waiting.append(data)
        self._wake()

    def write_when_silent(self, data: bytes, seconds: float) -> None:
        """From now on write `data` whenever nothing else was written for so long."""
        loop = asyncio.get_running_loop()
        self._silence = loop.call_later(seconds, self._break_silence, data, seconds, self._num_writes)

    def end(self) -> None:
        """No more will be written."""
        self._is_ended = True
        if self._silence is not None:
            self._silence.cancel()
        if self._ending is not None:
            _resolve(self._ending)
        self._wake()

    async def read(self) -> tuple[bytes, bool]:
        """Everything that waits, or else the next write, and whether it is the last. Empty only at the end."""
        if not self._waiting and not self._is_ended:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
            self._reader = None
        data = b"".join(self._waiting) if len(self._waiting) != 1 else self._waiting[0]
        self._waiting.clear()
        self._num_bytes = 0
        return data, self._is_ended

    async def pause(self, seconds: float) -> None:
        """Wait for so long, or until the end; writes don't shorten it."""
        if self._is_ended:
            return
        self._ending = asyncio.get_running_loop().create_future()
        timer = asyncio.get_running_loop().call_later(seconds, _resolve, self._ending)
        try:
            await self._ending
        finally:
            timer.cancel()

    def _break_silence(self, data: bytes, seconds: float, num_writes_before: int) -> None:
        if self._num_writes == num_writes_before and not self._waiting:
            self.write(data)
        self.write_when_silent(data, seconds)

    def _wake(self) -> None:
        if self._reader is not None:
            _resolve(self._reader)


def _resolve(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)

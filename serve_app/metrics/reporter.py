"""Sends a process's snapshot to the sidecar again and again, and never lets that disturb serving.

Owns one asyncio task. How a snapshot travels is the caller's `send`. A sidecar that is absent, dead or slow costs one
log line when it is lost, one when it is found, and nothing else.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from serve_app.metrics.snapshot import MetricSnapshot, Snapshot, Source

_log = logging.getLogger(__name__)


class Reporter:
    """Pushes snapshots of what `read` returns every `period_s` from `start` to `stop`, one at a time.

    `send` may fail in any way and take any time: it is given `timeout_s`, then cancelled and not waited for.
    It must not block the event loop: resolve a Ray handle in a thread.
    """

    def __init__(
        self,
        read: Callable[[], tuple[MetricSnapshot, ...]],
        source: Source,
        send: Callable[[Snapshot], Awaitable[object]],
        period_s: float = 1.0,
        timeout_s: float = 3.0,
        loading: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._read = read
        self._source = source
        self._send = send
        self._period_s = period_s
        self._timeout_s = timeout_s
        self._loading = loading
        self._sequence = 0
        self._is_lost = False
        self._stopping = asyncio.Event()
        self._sending: asyncio.Future[object] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to push, at once and then every `period_s`. Needs a running event loop."""
        assert self._task is None, "this reporter was started before: make a new one"
        self._task = asyncio.get_running_loop().create_task(self._run(), name="metrics reporter")

    async def stop(self) -> None:
        """Let a push under way end, and push a last time, so that the sidecar has the whole count.

        Takes at most twice `timeout_s`, never raises, and may be called again.
        """
        self._stopping.set()
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        while not self._stopping.is_set():
            await self._push()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._period_s)
        await self._push(is_final=True)

    async def _push(self, is_final: bool = False) -> None:
        try:
            await self._send_once(is_final)
        except Exception as exc:  # noqa: BLE001 whatever fails in telling numbers, serving goes on
            if not self._is_lost:
                _log.warning("metrics sidecar lost, retried every %g s: %s", self._period_s, _one_line(exc))
            self._is_lost = True
        else:
            if self._is_lost:
                _log.info("metrics sidecar found again")
            self._is_lost = False

    async def _send_once(self, is_final: bool) -> None:
        """Send one snapshot. A task of its own tells the sidecar's cancellation from this reporter's."""
        if self._sending is not None and not self._sending.done():
            raise TimeoutError("the last push, cancelled by its timeout, still hasn't ended")
        self._sequence += 1
        metrics, now_s = self._read(), time.monotonic()
        snapshot = Snapshot(self._source, self._sequence, now_s, metrics, is_final, self._loading())
        self._sending = asyncio.ensure_future(self._send(snapshot))
        try:
            done, _ = await asyncio.wait({self._sending}, timeout=self._timeout_s)
        finally:
            self._sending.add_done_callback(_read_result)
            self._sending.cancel()
        if not done:
            raise TimeoutError(f"no answer within {self._timeout_s} s")
        if self._sending.cancelled():
            raise ConnectionError("the push was cancelled by its receiver")
        self._sending.result()


def _read_result(sending: "asyncio.Future[object]") -> None:
    """Keep asyncio from logging the failure of a push that nobody waits for any more."""
    if not sending.cancelled():
        sending.exception()


def _one_line(error: Exception) -> str:
    """The error's class and first line: Ray puts whole tracebacks into messages."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

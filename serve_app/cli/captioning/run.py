"""A run over any number of images, with bounded concurrency. Every result is written when it comes.

Knows nothing of file formats or HTTP statuses: `Output` keeps rows, `CaptionRequest` sorts failures, `Pace`
decides when to send. Stopping at any moment, even by SIGKILL, leaves an output that the same command continues.
"""

import asyncio
import signal
import time
from collections.abc import Iterator
from itertools import islice

from serve_app.cli.captioning.inputs.image import FoundImage
from serve_app.cli.captioning.inputs.walk import ImageWalk
from serve_app.cli.captioning.outputs.output import FolderRefused, Output
from serve_app.cli.captioning.outputs.rows import Row
from serve_app.cli.captioning.pace import Pace, local_pause_s
from serve_app.cli.captioning.places import key, place
from serve_app.cli.captioning.progress import RunProgress
from serve_app.cli.captioning.request import Broken, CaptionRequest, Refused, Work
from serve_app.cli.captioning.together import Together
from serve_app.cli.errors import UNREACHABLE, USAGE, CliError
from serve_app.client.errors import Unreachable

MAX_BROKEN = 4  # tries of an image at which the service itself fails
MAX_REFUSALS = 100  # of one image while others are served
GRACE_S = 10.0  # for the answers on their way when Ctrl-C comes
SYNC_EVERY_S = 5.0
QUICK_S = 15.0  # an answer's time, while few are on their way, with which a service takes many
BATCH = 256  # images looked up at a time, off the event loop
BATCH_BYTES = 16_000_000  # of images that come with their bytes


class CaptionRun:
    """Captions the images of one walk. `signal_number` is set if a signal ended it."""

    def __init__(
        self, service: Together, request: CaptionRequest, output: Output, pace: Pace,
        progress: RunProgress, *, concurrency: int, limit: int | None, is_retrying: bool,
        is_only_retrying: bool = False, num_at_first: int | None = None,
    ) -> None:  # fmt: skip
        """`num_at_first`: so many images are on their way until an answer is quick; None for all at once."""
        self._service = service
        self._request = request
        self._output = output
        self._pace = pace
        self._progress = progress
        self._concurrency = concurrency
        self._num_at_first = concurrency if num_at_first is None else num_at_first
        self._is_quick = asyncio.Event()
        self._limit = limit
        self._is_retrying = is_retrying
        self._is_only_retrying = is_only_retrying
        self._seen: set[int] = set()
        self._num_looked_at = 0
        self._refused_folders: set[str] = set()
        self._queue: asyncio.Queue[FoundImage | None] = asyncio.Queue(maxsize=2 * concurrency)
        self._workers: list[asyncio.Task[None]] = []
        self._sending: set[asyncio.Task[None] | None] = set()
        self._num_broken_in_a_row = 0
        self._is_over = False
        self.signal_number: int | None = None

    async def run(self, walk: ImageWalk, counted: ImageWalk) -> None:
        """Caption until all is done, a signal comes, or `CliError` says why it can't go on.

        `counted` is a second walk of the same images, for the time left.
        """
        producer = asyncio.create_task(self._produce(walk))
        syncer = asyncio.create_task(self._sync_regularly())
        counter = asyncio.create_task(asyncio.to_thread(self._count, counted))
        self._workers = [asyncio.create_task(self._work(number)) for number in range(self._concurrency)]
        tasks = [producer, *self._workers]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number, producer)
        loop.add_signal_handler(signal.SIGUSR1, self._progress.say_all)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self._is_over = True
            for task in (*tasks, syncer, counter):
                task.cancel()
            await asyncio.gather(*tasks, syncer, counter, return_exceptions=True)
        for task in done:
            if not task.cancelled() and (error := task.exception()):
                raise error

    def _stop(self, number: int, producer: "asyncio.Task[None]") -> None:
        """First signal: no new images, and the answers on their way have a moment. Second: now."""
        if self.signal_number is not None:
            _cancel(self._workers)
            return
        self.signal_number = number
        producer.cancel()
        _cancel([task for task in self._workers if task not in self._sending])
        if self._sending:
            self._progress.say(f"Stopping after the {len(self._sending)} images on their way; again stops now")
        asyncio.get_running_loop().call_later(GRACE_S, _cancel, self._workers)

    async def _produce(self, walk: ImageWalk) -> None:
        """Put what is still to do in the queue, in the walk's order."""
        todo = self._todo(walk)
        if self._limit is not None:
            todo = islice(todo, self._limit)
        while batch := await asyncio.to_thread(lambda: list(_batch(todo))):
            for image in batch:
                await self._queue.put(image)
        for _ in range(self._concurrency):
            await self._queue.put(None)

    def _todo(self, walk: ImageWalk) -> Iterator[FoundImage]:
        for image in walk:
            self._num_looked_at += 1
            if walk.may_repeat:
                image_key = key(place(image.path))
                if image_key in self._seen:
                    continue
                self._seen.add(image_key)
            try:
                state = self._output.state(image.path)
            except FolderRefused as refused:
                self._refuse(refused)
                continue
            if state == "done":
                self._progress.num_done_before += 1
            elif state == "failed" and not self._is_retrying:
                self._progress.num_failed_before += 1
            elif state == "new" and self._is_only_retrying:
                self._progress.num_left += 1
            else:
                yield image

    def _refuse(self, refused: FolderRefused) -> None:
        """One failure for the images of a folder. Raises `CliError` where it is the run's first."""
        self._progress.num_not_tried += 1
        if refused.folder in self._refused_folders:
            return
        if self._num_looked_at == 1:
            raise CliError(refused.reason, USAGE)
        self._refused_folders.add(refused.folder)
        self._progress.say(f"{refused.folder}: {refused.reason}")

    def _count(self, walk: ImageWalk) -> None:
        num_found = 0
        for _ in walk:
            if self._is_over:
                return
            num_found += 1
        self._progress.num_found = num_found

    async def _work(self, number: int) -> None:
        if number >= self._num_at_first:
            await self._is_quick.wait()
        while image := await self._queue.get():
            if image.error_code is not None:
                self._finish(self._request.failure(image.path, image.error_code, image.reason))
                continue
            work = Work(image)
            self._finish(await self._caption(work), work.data)
            if self.signal_number is not None:
                return
        self._is_quick.set()  # nothing is left for those who wait

    async def _caption(self, work: Work) -> Row:
        """The image's final row, after as many tries as it takes."""
        num_broken = num_refusals = 0
        while True:
            await self._pace.wait()
            begun_s = time.monotonic()
            try:
                row = await self._send(work)
            except Unreachable as exc:
                self._pace.unreachable(exc.message)
            except Refused as exc:
                num_refusals += 1
                self._pace.refused(exc.error.message, exc.error.retry_after_s)
                if num_refusals >= MAX_REFUSALS:
                    return self._request.failure(work.image.path, exc.error.code or "refused", exc.error.message)
            except Broken as exc:
                num_broken += 1
                if num_broken >= MAX_BROKEN:
                    self._count_broken(exc.row)
                    return exc.row
                await asyncio.sleep(local_pause_s(num_broken))
            else:
                self._pace.succeeded()
                if time.monotonic() - begun_s < QUICK_S:
                    self._is_quick.set()
                self._num_broken_in_a_row = 0
                return row
            if self.signal_number is not None:
                raise asyncio.CancelledError

    async def _send(self, work: Work) -> Row:
        task = asyncio.current_task()
        self._sending.add(task)
        try:
            return await self._request.send(self._service, work)
        finally:
            self._sending.discard(task)

    def _count_broken(self, row: Row) -> None:
        """End the run where the service fails at every image: that is not the images' doing."""
        self._num_broken_in_a_row += 1
        if self._num_broken_in_a_row >= max(20, self._concurrency):
            raise CliError(
                f"The service failed at {self._num_broken_in_a_row} images in a row: {row.error_message}. "
                "Look at its log; then continue with --retry-failed", UNREACHABLE,
            )  # fmt: skip

    def _finish(self, row: Row, data: bytes | None = None) -> None:
        self._progress.count(self._output.write(row, data))

    async def _sync_regularly(self) -> None:
        while True:
            await asyncio.sleep(SYNC_EVERY_S)
            await asyncio.to_thread(self._output.sync)
            self._progress.advance()


def _batch(images: Iterator[FoundImage]) -> Iterator[FoundImage]:
    """The next images, few of those that hold their bytes."""
    num_bytes = 0
    for image in islice(images, BATCH):
        yield image
        num_bytes += len(image.data or b"")
        if num_bytes > BATCH_BYTES:
            return


def _cancel(tasks: "list[asyncio.Task[None]]") -> None:
    for task in tasks:
        task.cancel()

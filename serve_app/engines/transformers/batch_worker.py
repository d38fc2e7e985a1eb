"""The thread that runs the model: takes waiting rows, lets them join the running ones, and hands out chunks.

Owns the waiting list and decides which row runs when. `step_batch.py` runs a batch, or `whole_batch.py` for the
architectures whose rows can't join. Knows nothing of asyncio.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from serve_app.config.applications import ModelConfig
from serve_app.engines.transformers.checkpoint import Checkpoint
from serve_app.engines.transformers.row import Outcome, Row
from serve_app.engines.transformers.step_batch import OnStep, StepBatch, can_join
from serve_app.engines.transformers.whole_batch import run_whole_batch
from serve_app.errors import EngineFailed

logger = logging.getLogger(__name__)

# The most prompt tokens of newcomers in one prefill while other rows wait for their next token. A single longer
# prompt still goes through in one piece.
_MAX_PREFILL_TOKENS = 8192


class BatchWorker:
    """Runs rows until stopped. `deliver` is called on the worker's thread, once per step, for all rows."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, deliver: OnStep) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._deliver = deliver
        self._steps = StepBatch(checkpoint, self._on_step) if can_join(checkpoint.model) else None
        self._waiting: list[Row] = []
        self._running: list[Row] = []
        self._changed = threading.Condition()
        self._is_stopping = False
        self._last_step_s: float | None = None  # None while idle
        self._thread = threading.Thread(target=self._run, name="batch-worker", daemon=True)
        self._thread.start()

    @property
    def joins(self) -> bool:
        """Whether requests join between steps; otherwise they wait until the running batch ends."""
        return self._steps is not None

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of the rows that wait."""
        return sum(row.prompt.num_tokens for row in self._waiting)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def silent_s(self) -> float:
        """Seconds since the running batch's last step; 0 while idle."""
        last = self._last_step_s
        return 0.0 if last is None else time.monotonic() - last

    def submit(self, rows: Sequence[Row]) -> None:
        with self._changed:
            self._waiting.extend(rows)
            self._changed.notify()

    def cancel(self, rows: Sequence[Row]) -> None:
        """Leave the waiting list at once, or the batch within one step."""
        for row in rows:
            row.is_cancelled = True
        with self._changed:
            self._waiting = [row for row in self._waiting if not row.is_cancelled]

    def stop(self, timeout_s: float) -> None:
        """Cancel everything and end the thread. Blocks for at most `timeout_s`: call it in a thread."""
        with self._changed:
            self._is_stopping = True
            for row in (*self._waiting, *self._running):
                row.is_cancelled = True
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(timeout_s)

    @torch.inference_mode()
    def _run(self) -> None:
        while self._has_work():
            self._last_step_s = time.monotonic()
            if self._steps:
                self._advance(self._steps)
            elif rows := self._take(self._config.max_batch_size):
                with self._failing(rows):
                    run_whole_batch(rows, self._checkpoint, self._on_step)

    def _has_work(self) -> bool:
        """Wait for a row, then up to `batch_wait_s` for others. False when stopping."""
        self._running = [row for row in self._running if not (row.is_ended or row.is_cancelled)]
        if self._running:
            return not self._is_stopping
        self._last_step_s = None
        if self._steps:
            self._steps.clear()  # an idle model holds no cache
        with self._changed:
            while not (self._waiting or self._is_stopping):
                self._changed.wait_for(lambda: self._waiting or self._is_stopping)
                self._changed.wait_for(self._is_full, timeout=self._config.batch_wait_s)
            return not self._is_stopping

    def _is_full(self) -> bool:
        return self._is_stopping or len(self._waiting) >= self._config.max_batch_size

    def _take(self, num_free: int) -> list[Row]:
        """The row that has waited longest and those that batch with it, at most `num_free`. They run from now on."""
        with self._changed:
            rows = _companions(self._waiting, num_free, _MAX_PREFILL_TOKENS if self._running else None)
            taken = set(rows)
            self._waiting = [row for row in self._waiting if row not in taken]
            self._running = self._running + rows
        started_s = time.monotonic()
        for row in rows:
            row.started_s = started_s
        return rows

    def _advance(self, batch: StepBatch) -> None:
        """Let newcomers in, then one token for everybody."""
        with self._failing(batch.rows):
            batch.drop_ended()
        if all(row.is_ended for row in batch.rows):
            batch.clear()
        if newcomers := self._take(self._config.max_batch_size - len(batch.rows)):
            with self._failing(newcomers):
                batch.admit(newcomers)
        if batch.rows:
            with self._failing(batch.rows):
                batch.step()

    def _on_step(self, outcomes: list[tuple[Row, Outcome]]) -> None:
        self._last_step_s = time.monotonic()
        if outcomes:
            self._deliver(outcomes)

    @contextmanager
    def _failing(self, rows: Sequence[Row]) -> Iterator[None]:
        """An exception inside ends these rows with an error, and nothing else."""
        try:
            yield
        except Exception as exc:  # an engine boundary: these rows fail, the engine goes on
            logger.error("model %s: a batch of %d failed", self._config.source, len(rows), exc_info=exc)
            is_out_of_memory = isinstance(exc, torch.OutOfMemoryError)
            reason = f"{type(exc).__name__}; the replica's log says where"
            if is_out_of_memory:
                reason = "it ran out of memory; lower max_batch_size or max_context_tokens"
            errors: list[tuple[Row, Outcome]] = []
            for row in rows:
                if not row.is_ended:
                    row.is_ended = True
                    message = f"model '{row.request.model}' failed on this batch: {reason}"
                    errors.append((row, EngineFailed(message)))
            self._deliver(errors)
            if is_out_of_memory and torch.cuda.is_available():
                torch.cuda.empty_cache()


def _companions(waiting: Sequence[Row], num_free: int, max_tokens: int | None) -> list[Row]:
    """The first row and those with its batch key, in all at most `max_tokens` when padded, but at least one row."""
    rows: list[Row] = []
    longest = 0
    for row in waiting:
        if len(rows) >= num_free:
            break
        if row.prompt.batch_key != waiting[0].prompt.batch_key:
            continue
        longest = max(longest, row.prompt.num_tokens)
        if rows and max_tokens is not None and longest * (len(rows) + 1) > max_tokens:
            break
        rows.append(row)
    return rows

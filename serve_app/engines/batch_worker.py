"""The thread that runs the model: takes requests that wait, batches them, and hands out chunks step by step.

Owns the waiting list and one batch at a time. A row that ends (stop, length, cancelled) is delivered at once,
though its batch goes on; a batch ends when all rows have. Knows nothing of asyncio but `deliver`.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from serve_app.config import ModelConfig
from serve_app.engines.answer_text import AnswerText
from serve_app.engines.checkpoint import Checkpoint
from serve_app.engines.prompt import Prompt, collate
from serve_app.engines.row_sampler import RowSampler, RowSampling
from serve_app.errors import EngineFailed
from serve_app.messages import Chunk, FinishReason, GenerationRequest, Sampling

logger = logging.getLogger(__name__)

Outcome = Chunk | EngineFailed


@dataclass(slots=True, eq=False)
class Row:
    """One request on its way through the worker. `is_cancelled` may be set by any thread, at any time."""

    request: GenerationRequest
    prompt: Prompt
    max_tokens: int
    answer: AnswerText
    received_s: float
    is_cancelled: bool = False
    is_ended: bool = False
    num_tokens: int = 0
    started_s: float | None = None
    _unreported: int = field(default=0)
    _is_first: bool = field(default=True)

    def step(self, token: int, eos_ids: frozenset[int]) -> Chunk | None:
        """Take the step's token; the chunk it makes, if any. Sets `is_ended` with the last one."""
        if self.is_cancelled:
            self.is_ended = True
            return None
        self.num_tokens += 1
        self._unreported += 1
        text = "" if token in eos_ids else self.answer.add(token)
        finish: FinishReason | None = None
        if token in eos_ids or self.answer.is_stopped:
            finish = "stop"
        elif self.num_tokens >= self.max_tokens:
            finish = "length"
        if finish:
            self.is_ended = True
            text += self.answer.finish()
            finish = "stop" if self.answer.is_stopped else finish
        return self._chunk(text, finish) if text or finish else None

    def _chunk(self, text: str, finish: FinishReason | None) -> Chunk:
        queue_s = (self.started_s or self.received_s) - self.received_s if self._is_first else None
        chunk = Chunk(text, self._unreported, self.prompt.num_tokens, finish, queue_s)
        self._unreported, self._is_first = 0, False
        return chunk


Deliver = Callable[[list[tuple[Row, Outcome]]], None]


class _Steps(StoppingCriteria):
    """Called by `generate` after each token of the batch: advances every row, and says which have ended.

    It does a streamer's work as well, because a row's stop strings can only be seen in its text.
    """

    def __init__(self, rows: Sequence[Row], eos_ids: frozenset[int], on_step: Deliver) -> None:
        self._rows = rows
        self._eos_ids = eos_ids
        self._on_step = on_step

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: object) -> torch.BoolTensor:
        tokens = input_ids[:, -1].tolist()
        outcomes: list[tuple[Row, Outcome]] = []
        for row, token in zip(self._rows, tokens, strict=True):
            chunk = None if row.is_ended else row.step(token, self._eos_ids)
            if chunk:
                outcomes.append((row, chunk))
        self._on_step(outcomes)
        ended = [row.is_ended for row in self._rows]
        return torch.tensor(ended, device=input_ids.device, dtype=torch.bool)  # type: ignore[return-value]  # a BoolTensor


class BatchWorker:
    """Runs batches until stopped. `deliver` is called on the worker's thread, once per step, for all rows."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, deliver: Deliver) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._deliver = deliver
        self._waiting: list[Row] = []
        self._running: list[Row] = []
        self._changed = threading.Condition()
        self._is_stopping = False
        self._last_step_s: float | None = None  # None while idle
        self._thread = threading.Thread(target=self._run, name="batch-worker", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Rows that the model still works on."""
        return sum(not row.is_ended for row in self._running)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def silent_s(self) -> float:
        """Seconds since the running batch's last step; 0 while idle."""
        last = self._last_step_s
        return 0.0 if last is None else time.monotonic() - last

    def submit(self, row: Row) -> None:
        with self._changed:
            self._waiting.append(row)
            self._changed.notify()

    def cancel(self, row: Row) -> None:
        """Leave the waiting list at once, or the batch within one step."""
        row.is_cancelled = True
        with self._changed:
            if row in self._waiting:
                self._waiting.remove(row)

    def stop(self, timeout_s: float) -> None:
        """Cancel everything and end the thread. Blocks for at most `timeout_s`: call it in a thread."""
        with self._changed:
            self._is_stopping = True
            for row in (*self._waiting, *self._running):
                row.is_cancelled = True
            self._waiting.clear()
            self._changed.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while rows := self._next_batch():
            self._last_step_s = time.monotonic()
            try:
                self._generate(rows)
            except Exception as exc:  # noqa: BLE001 - an engine boundary: the batch fails, the engine goes on
                self._fail(rows, exc)
            finally:
                self._last_step_s = None
                self._running = []

    def _next_batch(self) -> list[Row]:
        """Wait for requests, then for companions; the oldest and those that batch with it. Empty when stopping."""
        with self._changed:
            if not self._waiting:
                self._changed.wait_for(lambda: self._waiting or self._is_stopping)
                self._changed.wait_for(self._is_full, timeout=self._config.batch_wait_s)
            if self._is_stopping:
                return []
            if not self._waiting:  # cancelled while it waited for companions
                return self._next_batch()
            key = self._waiting[0].prompt.batch_key
            rows = [row for row in self._waiting if row.prompt.batch_key == key][: self._config.max_batch_size]
            self._waiting = [row for row in self._waiting if row not in rows]
            self._running = rows
            return rows

    def _is_full(self) -> bool:
        return self._is_stopping or len(self._waiting) >= self._config.max_batch_size

    @torch.inference_mode()
    def _generate(self, rows: list[Row]) -> None:
        started_s = time.monotonic()
        for row in rows:
            row.started_s = started_s
        sampling = [self._sampling(row.request.sampling) for row in rows]
        model = self._checkpoint.model
        model.generate(
            **collate([row.prompt for row in rows], self._checkpoint),
            max_new_tokens=max(row.max_tokens for row in rows),
            logits_processor=LogitsProcessorList([RowSampler(sampling, model.device)]),
            stopping_criteria=StoppingCriteriaList([_Steps(rows, self._checkpoint.eos_ids, self._on_step)]),
        )
        left = [row for row in rows if not (row.is_ended or row.is_cancelled)]
        assert not left, f"generate returned while {len(left)} rows had no end"

    def _sampling(self, asked: Sampling) -> RowSampling:
        own = self._checkpoint
        return RowSampling(
            own.sampling_temperature if asked.temperature is None else asked.temperature,
            own.sampling_top_p if asked.top_p is None else asked.top_p,
            random.Random(asked.seed),
        )

    def _on_step(self, outcomes: list[tuple[Row, Outcome]]) -> None:
        self._last_step_s = time.monotonic()
        if outcomes:
            self._deliver(outcomes)

    def _fail(self, rows: list[Row], exc: Exception) -> None:
        logger.error("model %s: a batch of %d failed", self._config.source, len(rows), exc_info=exc)
        if isinstance(exc, torch.OutOfMemoryError):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            advice = "it ran out of memory; lower max_batch_size or max_context_tokens"
        else:
            advice = f"{type(exc).__name__}; the replica's log says where"
        left = [row for row in rows if not row.is_ended]
        for row in left:
            row.is_ended = True
        self._deliver([(row, _batch_error(row, advice)) for row in left])


def _batch_error(row: Row, advice: str) -> EngineFailed:
    return EngineFailed(f"model '{row.request.model}' failed on this batch: {advice}")

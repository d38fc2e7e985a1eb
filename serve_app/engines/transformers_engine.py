"""Runs a model with transformers: requests that wait go through one `generate` together, each streamed by itself.

A batch holds requests with the same number of pictures, so that every processor can batch them; prompts,
picture sizes, sampling, stops and lengths are each request's own. A request that ends leaves at once, and a
client that leaves ends its row within a step; the batch ends with its last row.
"""

import asyncio
import copy
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from serve_app.config import ModelConfig
from serve_app.engines.answer_text import AnswerText
from serve_app.engines.loading import LoadedModel, load_model
from serve_app.engines.row_sampler import RowSampler, RowSampling
from serve_app.errors import (
    ContextTooLong,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ServeAppError,
    UnsupportedTask,
)
from serve_app.messages import Chunk, GenerationRequest, Message, Picture, Text

logger = logging.getLogger("serve_app")

STUCK_AFTER_S = 120.0  # a single step takes seconds at most, on any machine that can serve the model at all


@dataclass(slots=True, eq=False)
class _Row:
    """One request on its way through a batch. The loop sets `is_cancelled`; all else belongs to the worker thread."""

    request: GenerationRequest
    arrived_at: float
    results: "asyncio.Queue[Chunk | ServeAppError]" = field(default_factory=asyncio.Queue)
    is_cancelled: bool = False
    is_over: bool = False
    num_prompt_tokens: int = 0
    queue_s: float | None = None
    answer: AnswerText | None = None
    num_unsent: int = 0

    def has_ended(self) -> bool:
        return self.is_over or self.is_cancelled


class TransformersEngine:
    """One model, one batch at a time, on a thread of its own."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._loaded: LoadedModel | None = None
        self._waiting: deque[_Row] = deque()
        self._running: list[_Row] = []
        self._arrival = asyncio.Event()
        self._scheduler: asyncio.Task[None] | None = None
        self._last_step_at = time.monotonic()

    @property
    def context_length(self) -> int | None:
        return self._model.context_length

    @property
    def takes_pictures(self) -> bool:
        return self._model.processor is not None

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    async def start(self) -> None:
        self._loaded = await asyncio.to_thread(load_model, self._config)
        self._scheduler = asyncio.create_task(self._schedule())

    async def check_health(self) -> None:
        if self._scheduler is None or self._scheduler.done():
            raise EngineFailed("the engine's scheduler has ended")
        if self._running and time.monotonic() - self._last_step_at > STUCK_AFTER_S:
            raise EngineFailed(f"the engine has made no step for {STUCK_AFTER_S:.0f} s")

    async def stop(self) -> None:
        if self._scheduler is not None:
            self._scheduler.cancel()
        for row in [*self._waiting, *self._running]:
            row.results.put_nowait(EngineFailed("the model is being stopped: send the request again"))
            row.is_cancelled = True
        self._waiting.clear()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        if request.pictures and not self.takes_pictures:
            raise UnsupportedTask(f"model '{request.model}' reads text only: send it no pictures", "messages")
        row = _Row(request, time.monotonic())
        self._waiting.append(row)
        self._arrival.set()
        try:
            while True:
                result = await row.results.get()
                if isinstance(result, ServeAppError):
                    raise result
                yield result
                if result.finish_reason is not None:
                    return
        finally:
            row.is_cancelled = True
            if row in self._waiting:
                self._waiting.remove(row)

    @property
    def _model(self) -> LoadedModel:
        assert self._loaded is not None, "start() comes first"
        return self._loaded

    async def _schedule(self) -> None:
        """Batch after batch, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrival.wait()
            if not self._running:
                await asyncio.sleep(self._config.batch_wait_s)  # companions of an idle engine's first request
            self._running = self._take_batch()
            self._arrival.clear() if not self._waiting else None
            if self._running:
                self._last_step_at = time.monotonic()
                await asyncio.to_thread(_Batch(self, self._running, loop).run)
            self._running = []

    def _take_batch(self) -> list[_Row]:
        """The oldest request, and those that wait with as many pictures."""
        if not self._waiting:
            return []
        num_pictures = len(self._waiting[0].request.pictures)
        alike = [row for row in self._waiting if len(row.request.pictures) == num_pictures]
        batch = alike[: self._config.max_batch_size]
        for row in batch:
            self._waiting.remove(row)
        return batch

    def note_step(self) -> None:
        self._last_step_at = time.monotonic()


class _Batch(StoppingCriteria):
    """One `generate` call. As its stopping criterion it sees every step's tokens, and says which rows are done."""

    def __init__(self, engine: TransformersEngine, rows: list[_Row], loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._loaded = engine._model
        self._rows = rows
        self._loop = loop

    def run(self) -> None:
        """Generate every row's answer; whatever goes wrong ends these rows and no more."""
        try:
            inputs = self._prepare()
            if inputs is not None:
                self._generate(inputs)
        except torch.OutOfMemoryError:
            logger.warning("out of memory in a batch of %d", len(self._rows))
            torch.cuda.empty_cache() if torch.cuda.is_available() else None
            self._fail("the model ran out of memory on this batch: send smaller pictures, or lower max_batch_size")
        except Exception:
            logger.exception("a batch of %d failed", len(self._rows))
            self._fail("the model failed on this batch: its log says why")

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """After each step: deliver the new tokens, all rows' in one call to the loop. Returns done rows, (rows,)."""
        self._engine.note_step()
        now = time.monotonic()
        results: list[tuple[_Row, Chunk | ServeAppError]] = []
        for row, token_id in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if not row.has_ended() and (result := self._advance(row, token_id, now)) is not None:
                results.append((row, result))
        self._deliver(results)
        return torch.tensor([row.has_ended() for row in self._rows], device=input_ids.device)

    def _advance(self, row: _Row, token_id: int, now: float) -> Chunk | ServeAppError | None:
        assert row.answer is not None, "prepared"
        if now - row.arrived_at > row.request.timeout_s:
            row.is_over = True
            return _too_late(row)
        text = row.answer.add(token_id)
        row.num_unsent += 1
        row.is_over = row.answer.finish_reason is not None
        if not text and not row.is_over and row.queue_s is None:
            return None
        chunk = Chunk(text, row.num_unsent, row.num_prompt_tokens, row.answer.finish_reason, row.queue_s)
        row.num_unsent, row.queue_s = 0, None
        return chunk

    def _generate(self, inputs: dict[str, Any]) -> None:
        samplings = [self._sampling(row) for row in self._rows]
        config = copy.copy(self._loaded.generation_config)
        config.max_new_tokens = max(self._max_tokens(row) for row in self._rows)
        with torch.inference_mode():
            self._loaded.model.generate(
                **inputs,
                generation_config=config,
                logits_processor=LogitsProcessorList([RowSampler(samplings)]),
                stopping_criteria=StoppingCriteriaList([self]),
            )

    def _prepare(self) -> dict[str, Any] | None:
        """Processor inputs of the rows that can run; the others are told why not and leave."""
        begun_at = time.monotonic()
        self._rows = [row for row in self._rows if not row.has_ended()]
        for row in self._rows:
            row.queue_s = begun_at - row.arrived_at
        while self._rows:
            try:
                inputs = self._process(self._rows)
            except (ValueError, TypeError, IndexError, KeyError, RuntimeError) as exc:
                if len(self._rows) == 1:
                    logger.warning("request %s: the processor refused it: %s", self._rows[0].request.id, exc)
                    self._end(self._rows[0], InvalidRequest("the model's processor can't read this prompt"))
                    return None
                self._drop_unprocessable()
                continue
            lengths = inputs["attention_mask"].sum(dim=1).tolist()
            too_long = [
                row for row, length in zip(self._rows, lengths, strict=True) if self._is_too_long(row, length)
            ]
            if not too_long:
                return dict(inputs.to(self._loaded.model.device, dtype=self._loaded.model.dtype))
            self._rows = [row for row in self._rows if row not in too_long]
        return None

    def _drop_unprocessable(self) -> None:
        """Find by themselves the rows that the processor can't take in a batch."""
        for row in list(self._rows):
            try:
                self._process([row])
            except (ValueError, TypeError, IndexError, KeyError, RuntimeError) as exc:
                logger.warning("request %s: the processor refused it: %s", row.request.id, exc)
                self._end(row, InvalidRequest("the model's processor can't read this prompt"))
                self._rows.remove(row)

    def _process(self, rows: Sequence[_Row]) -> Any:
        texts = [self._prompt(row.request) for row in rows]
        if self._loaded.processor is None:
            return self._loaded.tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        pictures = [[_to_pil(picture) for picture in row.request.pictures] for row in rows]
        return self._loaded.processor(
            text=texts, images=pictures if pictures[0] else None, padding=True, add_special_tokens=False,
            return_tensors="pt",
        )  # fmt: skip

    def _prompt(self, request: GenerationRequest) -> str:
        """Through the checkpoint's chat template; without one, the turns' texts, a line each."""
        template = self._loaded.processor or self._loaded.tokenizer
        if not getattr(template, "chat_template", None):
            return "\n".join(_text_of(message) for message in request.messages)
        messages = [
            {"role": m.role, "content": _text_of(m) if self._loaded.processor is None else _content_of(m)}
            for m in request.messages
        ]
        prompt: str = template.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return prompt

    def _is_too_long(self, row: _Row, num_prompt_tokens: int) -> bool:
        row.num_prompt_tokens = num_prompt_tokens
        limit, wanted = self._loaded.context_length, row.request.sampling.max_tokens
        if limit is not None and num_prompt_tokens + (wanted or 1) > limit:
            asked = f" and max_tokens asks for {wanted} more" if wanted else ""
            message = f"the prompt has {num_prompt_tokens} tokens{asked}, and the context holds {limit}: shorten it"
            self._end(row, ContextTooLong(message, "messages"))
            return True
        row.answer = AnswerText(
            lambda ids: str(self._loaded.tokenizer.decode(ids, skip_special_tokens=True)),
            row.request.sampling.stop, self._eos_ids(), self._max_tokens(row),
        )  # fmt: skip
        return False

    def _max_tokens(self, row: _Row) -> int:
        room = (self._loaded.context_length or 1 << 20) - row.num_prompt_tokens
        return min(row.request.sampling.max_tokens or room, room)

    def _eos_ids(self) -> frozenset[int]:
        ids = self._loaded.generation_config.eos_token_id
        return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])

    def _sampling(self, row: _Row) -> RowSampling:
        asked = row.request.sampling
        temperature = self._loaded.sampling_temperature if asked.temperature is None else asked.temperature
        top_p = self._loaded.sampling_top_p if asked.top_p is None else asked.top_p
        seed = secrets.randbits(62) if asked.seed is None else asked.seed % (1 << 63)
        return RowSampling(temperature, top_p, torch.Generator().manual_seed(seed))

    def _fail(self, sentence: str) -> None:
        for row in self._rows:
            if not row.is_over:
                self._end(row, EngineFailed(sentence))

    def _end(self, row: _Row, error: ServeAppError) -> None:
        row.is_over = True
        self._deliver([(row, error)])

    def _deliver(self, results: list[tuple[_Row, Chunk | ServeAppError]]) -> None:
        if results:
            self._loop.call_soon_threadsafe(_put_all, results)


def _put_all(results: list[tuple[_Row, Chunk | ServeAppError]]) -> None:
    for row, result in results:
        row.results.put_nowait(result)


def _too_late(row: _Row) -> ServeAppError:
    return DeadlineExceeded(f"no whole answer within {row.request.timeout_s:g} s: ask for fewer tokens")


def _to_pil(picture: Picture) -> Image.Image:
    return Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)


def _text_of(message: Message) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, Text))


def _content_of(message: Message) -> list[dict[str, str]]:
    return [{"type": "text", "text": p.text} if isinstance(p, Text) else {"type": "image"} for p in message.parts]

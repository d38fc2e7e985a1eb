"""The transformers engine: the model's own `generate` and processor, with requests that wait batched together.

The event loop only hands over: loading and prompts run in threads, the model in the batch worker's. Closing
a request's generator frees its row within one step.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from serve_app.config import Family, ModelConfig
from serve_app.engines.answer_text import AnswerText
from serve_app.engines.batch_worker import BatchWorker, Outcome, Row
from serve_app.engines.checkpoint import Checkpoint, load_checkpoint
from serve_app.engines.prompt import Prompt, prepare
from serve_app.errors import ContextTooLong, DeadlineExceeded, EngineFailed, ModelNotReady
from serve_app.messages import Chunk, GenerationRequest

STUCK_AFTER_S = 120.0  # a step takes milliseconds to seconds, the first one on a slow CPU perhaps a minute
_STOP_TIMEOUT_S = 10.0
_MAX_TOKENS_WITHOUT_CONTEXT = 4096  # for models that state no context length, so that each answer ends


class TransformersEngine:
    """Serves one checkpoint that `AutoModelForCausalLM` or `AutoModelForImageTextToText` loads."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._checkpoint: Checkpoint | None = None
        self._worker: BatchWorker | None = None
        self._is_stopped = False
        self._num_preparing = 0
        self._inboxes: dict[Row, asyncio.Queue[Outcome | DeadlineExceeded]] = {}
        # One thread: tokenizers and processors may not be used by two at once.
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prompts")

    @property
    def context_length(self) -> int | None:
        return self._checkpoint.context_length if self._checkpoint else None

    @property
    def takes_pictures(self) -> bool:
        return bool(self._checkpoint and self._checkpoint.takes_pictures)

    @property
    def picture_limit(self) -> int | None:
        return self._checkpoint.architecture.picture_limit if self._checkpoint else None

    @property
    def family(self) -> Family:
        return self._checkpoint.family if self._checkpoint else "generic"

    @property
    def num_waiting(self) -> int:
        return self._num_preparing + (self._worker.num_waiting if self._worker else 0)

    @property
    def num_running(self) -> int:
        """Requests that the model works on now."""
        return self._worker.num_running if self._worker else 0

    async def start(self) -> None:
        """Load the model in a thread. Raises `ConfigError`."""
        checkpoint = await asyncio.to_thread(load_checkpoint, self._config)
        loop = asyncio.get_running_loop()

        def deliver(outcomes: list[tuple[Row, Outcome]]) -> None:
            loop.call_soon_threadsafe(self._hand_out, outcomes)

        self._checkpoint = checkpoint
        self._worker = BatchWorker(checkpoint, self._config, deliver)

    async def check_health(self) -> None:
        worker = self._worker
        if self._is_stopped or worker is None:
            raise EngineFailed(f"model {self._config.source} isn't loaded: restart its replica")
        if not worker.is_alive:
            raise EngineFailed(f"the worker of model {self._config.source} died: its replica must restart")
        if worker.silent_s > STUCK_AFTER_S:
            raise EngineFailed(f"model {self._config.source} made no step for {worker.silent_s:.0f} s: restart it")

    async def stop(self) -> None:
        """End running work: each request raises `EngineFailed`. Frees the model. Idempotent."""
        self._is_stopped = True
        for row, inbox in list(self._inboxes.items()):
            inbox.put_nowait(EngineFailed(f"model '{row.request.model}' is shutting down: send the request again"))
        worker, self._worker = self._worker, None
        if worker:
            await asyncio.to_thread(worker.stop, _STOP_TIMEOUT_S)
        self._preparing.shutdown(wait=False, cancel_futures=True)
        self._checkpoint = None

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """The answer's chunks, one for each step that made text. Closing it stops the work within one step."""
        received_s = time.monotonic()
        row = await self._prepared(request, received_s)
        worker = self._worker
        if worker is None:
            raise EngineFailed(f"model '{request.model}' is shutting down: send the request again")
        inbox: asyncio.Queue[Outcome | DeadlineExceeded] = asyncio.Queue()
        self._inboxes[row] = inbox
        seconds_left = received_s + request.timeout_s - time.monotonic()
        deadline = asyncio.get_running_loop().call_later(seconds_left, inbox.put_nowait, _deadline_error(request))
        worker.submit(row)
        try:
            while True:
                outcome = await inbox.get()
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
                if outcome.finish_reason:
                    return
        finally:
            deadline.cancel()
            del self._inboxes[row]
            worker.cancel(row)

    async def _prepared(self, request: GenerationRequest, received_s: float) -> Row:
        """The request, ready to run. Raises what is wrong with the request itself."""
        checkpoint = self._checkpoint
        if self._is_stopped or checkpoint is None:
            raise ModelNotReady(f"model '{request.model}' isn't loaded: try again in a moment")
        self._num_preparing += 1
        try:
            async with asyncio.timeout(request.timeout_s):
                loop = asyncio.get_running_loop()
                prompt = await loop.run_in_executor(self._preparing, prepare, checkpoint, request)
        except TimeoutError as exc:
            raise _deadline_error(request) from exc
        finally:
            self._num_preparing -= 1
        decode = partial(
            checkpoint.decoding_tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        answer = AnswerText(decode, request.sampling.stop)
        return Row(request, prompt, _max_tokens(request, prompt, checkpoint.context_length), answer, received_s)

    def _hand_out(self, outcomes: list[tuple[Row, Outcome]]) -> None:
        for row, outcome in outcomes:
            if inbox := self._inboxes.get(row):
                inbox.put_nowait(outcome)


def _max_tokens(request: GenerationRequest, prompt: Prompt, context_length: int | None) -> int:
    """How long the answer may become. Raises `ContextTooLong` where prompt and answer don't fit together."""
    wanted = request.sampling.max_tokens
    if context_length is None:
        return wanted or _MAX_TOKENS_WITHOUT_CONTEXT
    room = context_length - prompt.num_tokens
    if room < 1:
        raise ContextTooLong(
            f"the prompt has {prompt.num_tokens} tokens and the context of model '{request.model}' is "
            f"{context_length}, the answer included: shorten the conversation or send fewer pictures",
            "messages",
        )
    if wanted and wanted > room:
        raise ContextTooLong(
            f"the prompt has {prompt.num_tokens} tokens and max_tokens is {wanted}, together "
            f"{prompt.num_tokens + wanted}; the context of model '{request.model}' is {context_length}: "
            f"ask for at most {room} tokens",
            "max_tokens",
        )
    return wanted or room


def _deadline_error(request: GenerationRequest) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the answer of model '{request.model}' wasn't complete after {request.timeout_s:g} s: ask for fewer tokens"
    )

"""The transformers engine: a checkpoint's own model and processor, with requests batched together.

Nothing here blocks the event loop: loading, prompts and grammars run in threads, the model in the batch worker's.
Cancelling a request frees its rows within one step. The engine calls no functions: tools need engine vllm.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from serve_app.checkpoints.load_progress import Report, to_nobody
from serve_app.config.applications import Family, ModelConfig
from serve_app.engines.context import answer_limit, deadline_error
from serve_app.engines.delivery import Delivery
from serve_app.engines.text.bound import TextBound
from serve_app.engines.transformers.answer_text import AnswerText
from serve_app.engines.transformers.batch_worker import BatchWorker
from serve_app.engines.transformers.checkpoint import Checkpoint, load_checkpoint
from serve_app.engines.transformers.output_grammar import Grammar, GrammarCompiler
from serve_app.engines.transformers.prompt import prepare, tokenized
from serve_app.engines.transformers.prompt_batch import Prompt
from serve_app.engines.transformers.row import Outcome, Row, row_sampling
from serve_app.errors import EngineFailed, InvalidRequest, ModelNotReady, UnsupportedTask
from serve_app.messages import Chunk, GenerationRequest, ImageEdge, OutputFormat, Put, TokenizedPrompt

STUCK_AFTER_S = 120.0  # a step takes milliseconds to seconds, the first one on a slow CPU perhaps a minute
_STOP_TIMEOUT_S = 10.0


class TransformersEngine:
    """Serves one checkpoint that `AutoModelForCausalLM` or `AutoModelForImageTextToText` loads."""

    def __init__(self, config: ModelConfig) -> None:
        self.context_length: int | None = None
        self.takes_images = False
        self.image_limit: int | None = None
        self.image_edge: ImageEdge | None = None
        self.family: Family = "generic"
        self._config = config
        self._checkpoint: Checkpoint | None = None
        self._worker: BatchWorker | None = None
        self._text_bound: TextBound | None = None
        self._is_stopped = False
        self._num_preparing = 0
        self._deliveries: dict[Row, Delivery] = {}
        # One thread: tokenizers and processors may not be used by two at once.
        self._preparing = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        # Apart from the prompts, which a hostile grammar would hold up.
        self._compiling = ThreadPoolExecutor(2, thread_name_prefix="grammars")
        self._compiler: GrammarCompiler | None = None  # made when first needed: some models take a second for it

    @property
    def num_at_once(self) -> int:
        """A batch. Where no request can join it while it runs, also the next batch, which is ready when it ends."""
        joins = self._worker is None or self._worker.joins
        return self._config.max_batch_size * (1 if joins else 2)

    @property
    def num_waiting(self) -> int:
        return self._num_preparing + (self._worker.num_waiting if self._worker else 0)

    @property
    def num_waiting_tokens(self) -> int:
        return self._worker.num_waiting_tokens if self._worker else 0

    @property
    def kv_cache_use(self) -> float | None:
        return None  # it grows with the batch, which `max_batch_size` bounds

    async def start(self, report: Report = to_nobody) -> None:
        """Load the model in a thread. Raises `ConfigError`."""
        checkpoint = await asyncio.to_thread(load_checkpoint, self._config, report)
        loop = asyncio.get_running_loop()

        def deliver(outcomes: list[tuple[Row, Outcome]]) -> None:
            loop.call_soon_threadsafe(self._hand_out, outcomes)

        # the tokenizer that only decodes: use changes the other one
        self._text_bound = await asyncio.to_thread(
            TextBound, checkpoint.decoding_tokenizer, checkpoint.context_length
        )
        self.context_length, self.takes_images = checkpoint.context_length, checkpoint.takes_images
        self.image_limit, self.image_edge = checkpoint.architecture.image_limit, checkpoint.image_edge
        self.family = checkpoint.family
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
        for row, delivery in self._deliveries.items():
            delivery.fail(EngineFailed(f"model '{row.request.model}' is shutting down: send the request again"))
        worker, self._worker = self._worker, None
        if worker:
            await asyncio.to_thread(worker.stop, _STOP_TIMEOUT_S)
        self._preparing.shutdown(wait=False, cancel_futures=True)
        self._compiling.shutdown(wait=False, cancel_futures=True)
        if self._text_bound:
            self._text_bound.close()
        self._checkpoint = None

    async def generate(self, request: GenerationRequest, put: Put) -> None:
        """Put a chunk for each step of an answer that made text. Cancelling stops the work within one step.

        With `num_logprobs` a chunk has as many logprobs as tokens: a token whose text is still held back (a part
        of a character or of a stop string) counts in the next chunk, as does its logprob.
        """
        received_s = time.monotonic()
        rows = await self._prepared(request, received_s)
        worker = self._worker
        if worker is None:
            raise EngineFailed(f"model '{request.model}' is shutting down: send the request again")
        delivery = Delivery(_queue_time_once(put) if len(rows) > 1 else put, len(rows))
        self._deliveries.update(dict.fromkeys(rows, delivery))
        worker.submit(rows)
        try:
            await delivery.wait(received_s + request.timeout_s - time.monotonic(), deadline_error(request))
        finally:
            for row in rows:
                del self._deliveries[row]
            worker.cancel(rows)

    async def tokenize(self, request: GenerationRequest) -> TokenizedPrompt:
        """Runs in the prompts' thread. Raises what is wrong with the request itself."""
        checkpoint, text_bound = self._loaded(request)
        await text_bound.check_countable(request)
        return await asyncio.get_running_loop().run_in_executor(self._preparing, tokenized, checkpoint, request)

    def _loaded(self, request: GenerationRequest) -> tuple[Checkpoint, TextBound]:
        if self._is_stopped or self._checkpoint is None or self._text_bound is None:
            raise ModelNotReady(f"model '{request.model}' isn't loaded: try again in a moment")
        return self._checkpoint, self._text_bound

    async def _prepared(self, request: GenerationRequest, received_s: float) -> list[Row]:
        """The request's answers, ready to run. Raises what is wrong with the request itself."""
        checkpoint, text_bound = self._loaded(request)
        if request.tool_use and request.tool_use.tools and request.tool_use.choice != "none":
            raise UnsupportedTask(
                f"model '{request.model}' runs on engine transformers, which calls no functions: leave out tools, or "
                "serve it with engine: vllm and a tool_call_parser",
                "tools",
            )
        self._num_preparing += 1
        try:
            async with asyncio.timeout(request.timeout_s):
                loop = asyncio.get_running_loop()
                request = await text_bound.fitted(request)
                prompt = await loop.run_in_executor(self._preparing, prepare, checkpoint, request)
                max_tokens = answer_limit(request, prompt.num_tokens, checkpoint.context_length)
                output_format = request.sampling.output_format
                grammar = await self._grammar(output_format, checkpoint) if output_format else None
        except TimeoutError as exc:
            raise deadline_error(request) from exc
        finally:
            self._num_preparing -= 1
        return _rows(request, checkpoint, prompt, max_tokens, grammar, received_s)

    async def _grammar(self, output_format: OutputFormat, checkpoint: Checkpoint) -> Grammar:
        loop = asyncio.get_running_loop()
        if self._compiler is None:
            make = partial(GrammarCompiler, checkpoint.tokenizer, checkpoint.eos_ids)
            try:
                self._compiler = await loop.run_in_executor(self._preparing, make)
            except ValueError as exc:
                raise InvalidRequest(
                    "this model's tokenizer can't be held to a format: leave out response_format", "response_format"
                ) from exc
        return await loop.run_in_executor(self._compiling, self._compiler.compile, output_format)

    def _hand_out(self, outcomes: list[tuple[Row, Outcome]]) -> None:
        for row, outcome in outcomes:
            if delivery := self._deliveries.get(row):
                if isinstance(outcome, Exception):
                    delivery.fail(outcome)
                else:
                    delivery.chunks([outcome])


def _queue_time_once(put: Put) -> Put:
    """For several answers to one request: of their first chunks, each with its `queue_s`, only the first keeps it."""
    is_first = True

    def put_on(chunk: Chunk) -> None:
        nonlocal is_first
        put(chunk if is_first else replace(chunk, queue_s=None))
        is_first = False

    return put_on


def _rows(
    request: GenerationRequest,
    checkpoint: Checkpoint,
    prompt: Prompt,
    max_tokens: int,
    grammar: Grammar | None,
    received_s: float,
) -> list[Row]:
    """One for each of the request's answers."""
    sampling = request.sampling
    return [
        Row(
            request=request,
            index=index,
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=row_sampling(sampling, index, checkpoint.sampling, not checkpoint.is_encoder_decoder),
            answer=AnswerText(checkpoint.decode_answer, sampling.stop, sampling.keeps_stop),
            token_text=checkpoint.decode_token,
            received_s=received_s,
            special_ids=checkpoint.special_ids,
            token_bytes=checkpoint.token_bytes.of,
            grammar=grammar.fresh() if grammar else None,
        )
        for index in range(sampling.num_answers)
    ]

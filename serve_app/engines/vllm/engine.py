"""The vLLM engine: `AsyncLLM` with vLLM's own chat templates, sampling, formats, parsers and adapters.

Only this folder names vLLM. The engine core is a process of vLLM's own. Here prompts are rendered and outputs become
chunks.
"""

import asyncio
import copy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import RequestOutputCollector

from serve_app.checkpoints.load_progress import Report, to_nobody
from serve_app.config.applications import Family, ModelConfig
from serve_app.engines.context import answer_limit, deadline_error
from serve_app.engines.delivery import Delivery
from serve_app.engines.grammar.source import KeptFormats
from serve_app.engines.text.bound import TextBound
from serve_app.engines.vllm.args import check_engine_args, first_line
from serve_app.engines.vllm.formats import end_in_time, format_fields
from serve_app.engines.vllm.loading import LoadedModel, load
from serve_app.engines.vllm.prompt import render, tokenize
from serve_app.engines.vllm.request import Answers
from serve_app.engines.vllm.tool_tags import bound_blanks
from serve_app.errors import ConfigError, EngineFailed, InvalidRequest, ModelNotReady, Overloaded
from serve_app.messages import GenerationRequest, ImageEdge, Put, TokenizedPrompt

_SHUTDOWN_TIMEOUT_S = 5.0
_GREEDY_BELOW = 1e-5  # vLLM's own bound
_AT_THE_END = 2**31 - 1  # tokens that vLLM collects after the first before it hands them on


class VllmEngine:
    """Serves one checkpoint, and its LoRA adapters, on vLLM."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._model: LoadedModel | None = None
        self._text_bound: TextBound | None = None
        self._formats = KeptFormats(lambda source: (source,))
        self._compiling = ThreadPoolExecutor(2, thread_name_prefix="grammars")
        self._waiting_tokens: dict[str, int] = {}  # by request, until its first output

    @property
    def context_length(self) -> int | None:
        return self._model.context_length if self._model else None

    @property
    def takes_images(self) -> bool:
        """Whether the model reads images; `limit_mm_per_prompt: {image: 0}` turns them off."""
        return self._model is not None and self._model.num_images_allowed > 0

    @property
    def image_limit(self) -> int | None:
        return self._model.image_limit if self._model else None

    @property
    def image_edge(self) -> ImageEdge | None:
        return self._model.image_edge if self._model else None

    @property
    def family(self) -> Family:
        return self._model.family if self._model else "generic"

    @property
    def num_at_once(self) -> int:
        return self._model.num_at_once if self._model else self._config.num_running_at_once

    @property
    def num_waiting(self) -> int:
        return self._model.pressure.num_waiting if self._model else 0

    @property
    def num_waiting_tokens(self) -> int:
        return sum(self._waiting_tokens.values())

    @property
    def kv_cache_use(self) -> float | None:
        return self._model.pressure.kv_cache_use if self._model else None

    async def start(self, report: Report = to_nobody) -> None:
        """Load the model: weights, caches, adapters; seconds to minutes. Raises `ConfigError`."""
        check_engine_args(self._config)
        self._model = await asyncio.to_thread(load, self._config, report)
        self._text_bound = await asyncio.to_thread(_text_bound, self._model)
        for adapter in self._model.adapters.values():
            await self._add_adapter(self._model.llm, adapter)

    async def check_health(self) -> None:
        if self._model is None:
            raise EngineFailed(f"model {self._config.source} isn't loaded: restart its replica")
        try:
            await self._model.llm.check_health()
        except EngineDeadError as exc:
            raise EngineFailed(f"vLLM's engine core of {self._config.source} died: its replica must restart") from exc

    async def stop(self) -> None:
        """End the engine core; running requests raise `EngineFailed`. Idempotent."""
        model, self._model = self._model, None
        self._compiling.shutdown(wait=False, cancel_futures=True)
        if self._text_bound is not None:
            self._text_bound.close()
        if model is not None:
            await asyncio.to_thread(model.llm.shutdown, _SHUTDOWN_TIMEOUT_S)

    async def generate(self, request: GenerationRequest, put: Put) -> None:
        """The answers' chunks, one for each step of each answer. Cancelling aborts the request within one step."""
        model, text_bound = self._loaded(request)
        deadline = time.monotonic() + request.timeout_s
        try:
            async with asyncio.timeout(request.timeout_s):
                request = await text_bound.fitted(request)
                chat, prompt = await render(request, model, **await self._format(request, model))
        except TimeoutError as exc:
            raise deadline_error(request) from exc
        tokens = prompt["prompt_token_ids"]
        params = _sampling_params(request, chat, len(tokens), model)
        bound_blanks(params)
        end_in_time(params)
        parsers = [None if request.raw else _parser(model.renderer, chat) for _ in range(params.n)]
        answers = Answers(chat, parsers, len(tokens), model.special_ids, model.token_bytes.of)
        keeps_back = not request.is_streamed and parsers[0] is None  # a parser wants its text token by token
        if keeps_back:
            params.stream_interval = _AT_THE_END
        delivery = Delivery(put, params.n)

        def deliver(output: RequestOutput | Exception) -> None:
            self._waiting_tokens.pop(request.id, None)
            if isinstance(output, Exception):
                delivery.fail(output)
            elif keeps_back and delivery.is_over:  # aborted: its tokens still count
                put(answers.aborted(output))
            else:
                delivery.chunks(answers.chunks(output))

        self._waiting_tokens[request.id] = len(tokens)
        internal_id: str | None = None
        try:
            with _our_errors(request):
                collector = await model.llm.add_request(
                    request.id,
                    prompt,
                    params,
                    lora_request=model.adapters.get(request.model),
                    reasoning_ended=chat.resolve_reasoning_ended(parsers[0], tokens),  # when a format begins to bind
                )
                internal_id = collector.request_id
                _pass_on(collector, deliver)
                await delivery.wait(deadline - time.monotonic(), deadline_error(request))
                internal_id = None
        finally:
            self._waiting_tokens.pop(request.id, None)
            if internal_id is not None:
                await model.llm.abort(internal_id, internal=True)

    async def _format(self, request: GenerationRequest, model: LoadedModel) -> dict[str, Any]:
        """The fields of vLLM's request that constrain its answer to a format, tried before the core sees it."""
        output_format = request.sampling.output_format
        if output_format is None:
            return {}
        loop = asyncio.get_running_loop()
        (source,) = await loop.run_in_executor(self._compiling, self._formats.get, output_format)
        return format_fields(source) if model.formats_by_llguidance else {}

    async def tokenize(self, request: GenerationRequest) -> TokenizedPrompt:
        model, text_bound = self._loaded(request)
        await text_bound.check_countable(request)
        return await tokenize(request, model)

    def _loaded(self, request: GenerationRequest) -> tuple[LoadedModel, TextBound]:
        if self._model is None or self._text_bound is None:
            raise ModelNotReady(f"model '{request.model}' isn't loaded: try again in a moment")
        return self._model, self._text_bound

    async def _add_adapter(self, llm: AsyncLLM, adapter: LoRARequest) -> None:
        try:
            await llm.add_lora(adapter)
        except Exception as exc:  # an engine boundary: vLLM raises anything at all for a foreign adapter
            await self.stop()
            raise ConfigError(
                f"adapter '{adapter.lora_name}' ({adapter.lora_path}) doesn't fit {self._config.source} "
                f"({first_line(exc)}): give one that was trained on this base"
            ) from exc


def _text_bound(model: LoadedModel) -> TextBound:
    """With a copy of the tokenizer, because vLLM changes the settings of its own while it uses it."""
    tokenizer = copy.deepcopy(model.renderer.renderer.get_tokenizer())
    return TextBound(tokenizer, model.context_length, model.renderer.chat_template)


def _pass_on(collector: RequestOutputCollector, deliver: Callable[[Any], None]) -> None:
    """Call `deliver` where vLLM makes an output. Otherwise vLLM would wake a task of ours for each token."""
    collector.put = deliver
    if (early := collector.output) is not None:
        collector.output = None
        deliver(early)


@contextmanager
def _our_errors(request: GenerationRequest) -> Iterator[None]:
    """Translate vLLM's refusals inside the block. The replica translates its failures."""
    try:
        yield
    except (VLLMClientError, ValueError) as exc:
        field = "response_format" if request.sampling.output_format else None  # what vLLM looks at this late
        raise InvalidRequest(f"model '{request.model}' can't take this request: {first_line(exc)}", field) from exc
    except GracefulHTTPError as exc:  # `max_num_queued_reqs` and its like, where engine_args set them
        raise Overloaded(f"model '{request.model}' is full ({first_line(exc)}): retry later", None, 2.0) from exc


def _sampling_params(
    request: GenerationRequest, chat: ChatCompletionRequest, num_prompt_tokens: int, model: LoadedModel
) -> SamplingParams:
    limit = answer_limit(request, num_prompt_tokens, model.context_length)
    temperature = model.defaults.get("temperature", 1.0) if chat.temperature is None else chat.temperature
    if chat.n > 1 and temperature < _GREEDY_BELOW:  # vLLM gives only one greedy answer per request
        chat = chat.model_copy(update={"temperature": 1.0, "top_k": 1})
    try:
        return chat.to_sampling_params(limit, model.defaults)
    except (VLLMClientError, ValueError) as exc:
        raise InvalidRequest(f"model '{request.model}' can't take this request: {first_line(exc)}") from exc


def _parser(renderer: OnlineRenderer, chat: ChatCompletionRequest) -> Any:
    """The parser of one answer's reasoning and tool calls; None where there can be neither."""
    if renderer.parser is None or (renderer.parser.reasoning_parser_cls is None and not chat.tools):
        return None
    return renderer.parser(
        renderer.renderer.get_tokenizer(),
        chat.tools,
        chat_template_kwargs=renderer.effective_chat_template_kwargs(chat),
        model_config=renderer.model_config,
    )

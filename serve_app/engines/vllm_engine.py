"""The vLLM engine: `AsyncLLM` with vLLM's own chat templates, sampling, formats, parsers and adapters.

This file and its neighbours `vllm_args.py` and `vllm_request.py` are the only ones that name vLLM. The engine
core is a process of vLLM's own; here prompts are rendered and outputs become chunks.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.loggers import StatLoggerBase

from serve_app.config import Family, ModelConfig
from serve_app.engines import source
from serve_app.engines.checkpoint_folder import check_adapter_fits
from serve_app.engines.context import answer_limit, deadline_error
from serve_app.engines.vllm_args import check_engine_args, engine_args, first_line, prompt_options
from serve_app.engines.vllm_request import Answers, chat_request
from serve_app.errors import (
    ConfigError,
    ContextTooLong,
    EngineFailed,
    InvalidRequest,
    ModelNotReady,
    UnsupportedTask,
)
from serve_app.families import family_of
from serve_app.load_progress import Report, to_nobody
from serve_app.messages import Chunk, GenerationRequest

logger = logging.getLogger(__name__)

_SHUTDOWN_TIMEOUT_S = 5.0
_UNLIMITED_PICTURES = 999  # vLLM's default of `limit_mm_per_prompt`
_GREEDY_BELOW = 1e-5  # vLLM's own bound


class _Pressure(StatLoggerBase):
    """Keeps the scheduler's last word on how many requests wait."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self.num_waiting = 0

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        if scheduler_stats is not None:
            self.num_waiting = scheduler_stats.num_waiting_reqs

    def log_engine_initialized(self) -> None:
        pass


class VllmEngine:
    """Serves one checkpoint, and its LoRA adapters, on vLLM."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._llm: AsyncLLM | None = None
        self._renderer: OnlineRenderer | None = None
        self._pressure: _Pressure | None = None
        self._adapters: dict[str, LoRARequest] = {}
        self._defaults: dict[str, Any] = {}
        self._is_stopped = False

    @property
    def context_length(self) -> int | None:
        return int(self._llm.model_config.max_model_len) if self._llm else None

    @property
    def takes_pictures(self) -> bool:
        """Whether the model reads pictures; `limit_mm_per_prompt: {image: 0}` turns them off."""
        return self._num_pictures_allowed > 0

    @property
    def picture_limit(self) -> int | None:
        limit = self._num_pictures_allowed
        return limit if 0 < limit < _UNLIMITED_PICTURES else None

    @property
    def family(self) -> Family:
        if self._llm is None:
            return "generic"
        config = self._llm.model_config.hf_config
        kinds = [
            getattr(getattr(config, part, None), "model_type", None) for part in ("vision_config", "text_config")
        ]
        return family_of(config.model_type, *kinds)

    @property
    def _num_pictures_allowed(self) -> int:
        multimodal = self._llm.model_config.multimodal_config if self._llm else None
        return int(multimodal.get_limit_per_prompt("image")) if multimodal is not None else 0

    @property
    def _calls_tools(self) -> bool:
        parser = self._renderer.parser if self._renderer else None
        return parser is not None and parser.tool_parser_cls is not None

    @property
    def num_waiting(self) -> int:
        return self._pressure.num_waiting if self._pressure else 0

    async def start(self, report: Report = to_nobody) -> None:
        """Load the model: weights, caches, adapters; seconds to minutes. Raises `ConfigError`."""
        check_engine_args(self._config)
        await asyncio.to_thread(self._load, report)
        assert self._llm is not None
        for adapter in self._adapters.values():
            await self._add_adapter(adapter)

    async def check_health(self) -> None:
        if self._llm is None or self._is_stopped:
            raise EngineFailed(f"model {self._config.source} isn't loaded: restart its replica")
        try:
            await self._llm.check_health()
        except EngineDeadError as exc:
            raise EngineFailed(f"vLLM's engine core of {self._config.source} died: its replica must restart") from exc

    async def stop(self) -> None:
        """End the engine core; running requests raise `EngineFailed`. Idempotent."""
        self._is_stopped = True
        llm, self._llm = self._llm, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown, _SHUTDOWN_TIMEOUT_S)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """The answers' chunks, one for each step of each answer. Closing it aborts the request within one step."""
        llm, renderer = self._llm, self._renderer
        if llm is None or renderer is None or self._is_stopped:
            raise ModelNotReady(f"model '{request.model}' isn't loaded: try again in a moment")
        deadline = time.monotonic() + request.timeout_s
        try:
            async with asyncio.timeout(request.timeout_s):
                chat, prompt = await self._rendered(request, renderer)
        except TimeoutError as exc:
            raise deadline_error(request) from exc
        num_prompt_tokens = len(prompt["prompt_token_ids"])
        params = self._sampling_params(request, chat, num_prompt_tokens)
        parsers = [_parser(renderer, chat) for _ in range(params.n)]
        answers = Answers(chat, parsers, num_prompt_tokens)
        outputs = llm.generate(
            prompt,
            params,
            request.id,
            lora_request=self._adapters.get(request.model),
            **_reasoning_arguments(chat, parsers[0], prompt["prompt_token_ids"]),
        )
        is_late = False
        aborts: list[asyncio.Future[None]] = []  # kept: the loop itself holds tasks only weakly

        def give_up() -> None:
            nonlocal is_late
            is_late = True
            aborts.append(asyncio.ensure_future(llm.abort(request.id, internal=False)))

        timer = asyncio.get_running_loop().call_later(deadline - time.monotonic(), give_up)
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    for chunk in answers.chunks(output):
                        yield chunk
        except (EngineDeadError, EngineGenerateError, EngineFailed) as exc:
            if is_late:
                raise deadline_error(request) from exc
            raise EngineFailed(
                f"model '{request.model}' failed on this request: send it again; the replica's log says why"
            ) from exc
        except (VLLMClientError, ValueError) as exc:
            raise InvalidRequest(f"model '{request.model}' can't take this request: {first_line(exc)}") from exc
        finally:
            timer.cancel()

    async def _rendered(
        self, request: GenerationRequest, renderer: OnlineRenderer
    ) -> tuple[ChatCompletionRequest, dict[str, Any]]:
        """vLLM's request and prompt. Raises what is wrong with the request itself."""
        self._refuse_unsupported(request)
        try:
            chat = chat_request(request)
            rendered = await renderer.render_chat(chat)
        except TemplateError as exc:
            raise InvalidRequest(
                f"model '{request.model}' can't take this conversation (its chat template says: {exc}): change the "
                "order of its roles or the number and place of its pictures",
                "messages",
            ) from exc
        except (VLLMClientError, ValidationError, ValueError, TypeError) as exc:
            raise self._refusal(request, exc) from exc
        if isinstance(rendered, ErrorResponse):
            raise InvalidRequest(f"model '{request.model}': {rendered.error.message}", rendered.error.param)
        (_, (prompt,)) = rendered
        return chat, prompt

    def _refuse_unsupported(self, request: GenerationRequest) -> None:
        if request.pictures and not self.takes_pictures:
            raise UnsupportedTask(
                f"model '{request.model}' reads text only: leave out the pictures, or choose another model"
            )
        if request.tool_use and request.tool_use.choice != "none" and not self._calls_tools:
            raise UnsupportedTask(
                f"model '{request.model}' calls no tools: leave them out, or give its engine_args a tool_call_parser",
                "tools",
            )

    def _refusal(self, request: GenerationRequest, exc: Exception) -> InvalidRequest | ContextTooLong:
        reason = first_line(exc)
        if "context length" in reason or "max_model_len" in reason or "longer than" in reason:
            return ContextTooLong(
                f"the prompt doesn't fit into the context of model '{request.model}', {self.context_length} tokens "
                f"({reason}): shorten the conversation or send fewer pictures",
                "messages",
            )
        return InvalidRequest(f"model '{request.model}' can't take this request: {reason}", "messages")

    def _sampling_params(
        self, request: GenerationRequest, chat: ChatCompletionRequest, num_prompt_tokens: int
    ) -> SamplingParams:
        limit = answer_limit(request, num_prompt_tokens, self.context_length)
        temperature = self._defaults.get("temperature", 1.0) if chat.temperature is None else chat.temperature
        if chat.n > 1 and temperature < _GREEDY_BELOW:  # vLLM gives one greedy answer a request: this gives n alike
            chat = chat.model_copy(update={"temperature": 1.0, "top_k": 1})
        try:
            return chat.to_sampling_params(limit, self._defaults)
        except (VLLMClientError, ValueError) as exc:
            raise InvalidRequest(f"model '{request.model}' can't take this request: {first_line(exc)}") from exc

    def _load(self, report: Report) -> None:
        """Everything that blocks. Raises `ConfigError` with vLLM's reason."""
        folder = source.resolve(self._config, report)
        adapters = {name: source.resolve_adapter(given, report) for name, given in self._config.adapters.items()}
        self._adapters = {
            name: LoRARequest(name, number, str(path))
            for number, (name, path) in enumerate(adapters.items(), start=1)
        }
        for name, path in adapters.items():
            check_adapter_fits(path, name, folder, self._config.source)
        ranks = [_adapter_rank(path) for path in adapters.values()]
        options = prompt_options(self._config)
        arguments = engine_args(self._config, folder, ranks)
        report("starting vLLM and loading weights")

        def make_pressure(vllm_config: Any, engine_index: int = 0) -> StatLoggerBase:
            self._pressure = _Pressure(vllm_config, engine_index)
            return self._pressure

        try:
            self._llm = AsyncLLM.from_engine_args(arguments, stat_loggers=[make_pressure])
        except Exception as exc:  # an engine boundary: vLLM's start raises anything at all
            raise ConfigError(_explain(exc, self._config)) from exc
        self._defaults = _sampling_defaults(self._llm)
        self._renderer = OnlineRenderer(
            self._llm.model_config,
            self._llm.renderer,
            request_logger=None,
            chat_template=options.chat_template,
            chat_template_content_format=options.chat_template_content_format,
            enable_auto_tools=options.tool_call_parser is not None,
            tool_parser=options.tool_call_parser,
            tool_strict_level=options.tool_strict_level,
            reasoning_parser=arguments.reasoning_parser or None,
            default_chat_template_kwargs=options.default_chat_template_kwargs,
        )

    async def _add_adapter(self, adapter: LoRARequest) -> None:
        assert self._llm is not None, "adapters come after the model"
        try:
            await self._llm.add_lora(adapter)
        except Exception as exc:  # an engine boundary: vLLM raises anything at all for a foreign adapter
            raise ConfigError(
                f"adapter '{adapter.lora_name}' ({adapter.lora_path}) doesn't fit {self._config.source} "
                f"({first_line(exc)}): give one that was trained on this base"
            ) from exc


def _parser(renderer: OnlineRenderer, chat: ChatCompletionRequest) -> Any:
    """What tells reasoning and tool calls from text in one answer; None where the model has no parser."""
    if renderer.parser is None:
        return None
    return renderer.parser(
        renderer.renderer.get_tokenizer(),
        chat.tools,
        chat_template_kwargs=renderer.effective_chat_template_kwargs(chat),
        model_config=renderer.model_config,
    )


def _reasoning_arguments(chat: ChatCompletionRequest, parser: Any, prompt_token_ids: list[int]) -> dict[str, Any]:
    """Tells the engine core when a format begins to bind: after the thinking."""
    return {"reasoning_ended": chat.resolve_reasoning_ended(parser, prompt_token_ids)}


def _sampling_defaults(llm: AsyncLLM) -> dict[str, Any]:
    """The checkpoint's own generation config; greedy where that doesn't say that it samples."""
    defaults = dict(llm.model_config.get_diff_sampling_param())
    own = llm.model_config.try_get_generation_config()
    if "temperature" not in defaults and not own.get("do_sample"):
        defaults["temperature"] = 0.0
    return defaults


def _adapter_rank(folder: Path) -> int:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    ranks = [config.get("r", 0), *(config.get("rank_pattern") or {}).values()]
    return max(int(rank) for rank in ranks)


def _explain(exc: Exception, config: ModelConfig) -> str:
    return f"source '{config.source}' can't be started on vLLM: {first_line(exc)}"

"""Starts vLLM for one checkpoint and its adapters, or says in a sentence why that fails.

The result has everything that a request needs. Blocks for seconds to minutes; knows nothing of requests.
"""

import json
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.model_executor.model_loader import get_model_cls
from vllm.model_executor.models import supports_multimodal
from vllm.renderers.hf import HfRenderer
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.transformers_utils.chat_templates.registry import get_chat_template_fallback_path
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase

from serve_app.checkpoints import source
from serve_app.checkpoints.architectures import architecture_of
from serve_app.checkpoints.folder import check_adapter_fits, has_chat_template
from serve_app.checkpoints.image_edges import image_edge
from serve_app.checkpoints.load_progress import Report
from serve_app.config.applications import Family, ModelConfig
from serve_app.engines.text.break_reader import read_breaks
from serve_app.engines.text.client_text import TextGuard, special_tokens, text_guard
from serve_app.engines.text.token_bytes import TokenBytes
from serve_app.engines.vllm.args import PromptOptions, engine_args, first_line, masks_images_wrongly, prompt_options
from serve_app.engines.vllm.executor import RankExecutor
from serve_app.engines.vllm.formats import is_by_llguidance
from serve_app.engines.vllm.nodes import fetch_on_other_nodes, point_to_ray
from serve_app.engines.vllm.plugin import FAILURE_FILE
from serve_app.engines.vllm.ranks import check_heads
from serve_app.engines.vllm.request import PLAIN_TEMPLATE
from serve_app.engines.vllm.short_prompts import render_short_prompts_here
from serve_app.errors import ConfigError
from serve_app.families import family_of_config
from serve_app.messages import ImageEdge

logger = logging.getLogger("serve_app")

_MAX_NUMBERED_IMAGES = 16  # in a prompt that numbers its images, as Phi-3-vision's `<|image_1|>`
_UNLIMITED_IMAGES = 999  # vLLM's default of `limit_mm_per_prompt`


class Pressure(StatLoggerBase):
    """Keeps the scheduler's latest number of waiting requests and use of the cache."""

    def __init__(self) -> None:  # vLLM calls a factory, not this
        self.num_waiting = 0
        self.kv_cache_use = 0.0

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        if scheduler_stats is not None:
            self.num_waiting = scheduler_stats.num_waiting_reqs
            self.kv_cache_use = float(scheduler_stats.kv_cache_usage)

    def log_engine_initialized(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A running vLLM, and what makes prompts for it.

    `defaults`: the checkpoint's own sampling parameters. `is_plain`: the checkpoint has no chat template, so that
    prompts are the bare texts. `reads_breaks`: its tokenizer reads the breaks that `texts` makes; renderers that
    encode texts themselves don't need any, because they never take a text for a token.
    """

    llm: AsyncLLM
    renderer: OnlineRenderer
    pressure: Pressure
    adapters: dict[str, LoRARequest]
    defaults: dict[str, Any]
    is_plain: bool
    context_length: int
    num_images_allowed: int
    image_edge: ImageEdge | None
    family: Family
    special_ids: frozenset[int]
    token_bytes: TokenBytes
    num_at_once: int
    texts: TextGuard
    reads_breaks: bool

    def image_mark(self, number: int) -> str:
        """The text that stands for a raw prompt's image; empty where the model's processor places the image."""
        return _image_mark(self.llm, number)

    @property
    def image_limit(self) -> int | None:
        return self.num_images_allowed if 0 < self.num_images_allowed < _UNLIMITED_IMAGES else None

    @property
    def formats_by_llguidance(self) -> bool:
        backend = self.llm.vllm_config.structured_outputs_config.backend
        return is_by_llguidance(backend, self.renderer.renderer.get_tokenizer())

    @property
    def calls_tools(self) -> bool:
        return self.renderer.parser is not None and self.renderer.parser.tool_parser_cls is not None


def load(config: ModelConfig, report: Report) -> LoadedModel:
    """Fetch, check and start. Call it in a thread. Raises `ConfigError`."""
    folder = source.resolve(config, report)
    adapters = {name: source.resolve_adapter(adapter, report) for name, adapter in config.adapters.items()}
    if config.num_ranks > 1:
        check_heads(config, folder)
        fetch_on_other_nodes(config, [folder, *adapters.values()], report)
        point_to_ray(config)
    for name, path in adapters.items():
        check_adapter_fits(path, name, folder, config.source)
    options = prompt_options(config)
    arguments = engine_args(config, folder, [_rank(path) for path in adapters.values()])
    pressure = Pressure()
    report("starting vLLM and loading weights")
    llm = _start(config, arguments, pressure)
    hf_config, multimodal = llm.model_config.hf_config, llm.model_config.multimodal_config
    if masks_images_wrongly(llm.model_config):
        logger.warning(
            "vLLM on CPUs answers about %s's images under a causal mask: set engine: transformers", config.source
        )
    is_plain = options.chat_template is None and _is_plain(folder, hf_config.model_type)
    renderer = _renderer(llm, options, is_plain, arguments.reasoning_parser or None)
    reads_breaks = isinstance(llm.renderer, HfRenderer) and not renderer.use_harmony
    render_short_prompts_here(llm.renderer)
    return LoadedModel(
        llm=llm,
        renderer=renderer,
        pressure=pressure,
        adapters={name: LoRARequest(name, number, str(adapters[name])) for number, name in enumerate(adapters, 1)},
        defaults=_sampling_defaults(llm),
        is_plain=is_plain,
        context_length=int(llm.model_config.max_model_len),
        num_images_allowed=int(multimodal.get_limit_per_prompt("image")) if multimodal is not None else 0,
        # the checkpoint's edge doesn't hold where the config changes the processor's settings
        image_edge=None if config.engine_args.get("mm_processor_kwargs") else image_edge(folder),
        family=family_of_config(hf_config),
        special_ids=frozenset(llm.renderer.get_tokenizer().all_special_ids),
        token_bytes=TokenBytes(llm.renderer.get_tokenizer()),
        num_at_once=int(llm.vllm_config.scheduler_config.max_num_seqs),
        texts=_guarded(llm, has_turns=not is_plain) if reads_breaks else TextGuard((), ()),
        reads_breaks=reads_breaks,
    )


def _image_mark(llm: AsyncLLM, number: int) -> str:
    model_class = get_model_cls(llm.model_config)
    return str(model_class.get_placeholder_str("image", number) or "") if supports_multimodal(model_class) else ""


def _guarded(llm: AsyncLLM, *, has_turns: bool) -> TextGuard:
    """The guard of clients' texts. The tokenizer is changed to read its breaks."""
    tokenizer, config = llm.renderer.get_tokenizer(), llm.model_config.hf_config
    read_breaks(tokenizer)
    if not llm.model_config.is_multimodal_model:
        return text_guard(tokenizer, (), has_turns=has_turns)
    special = special_tokens(tokenizer)
    placeholders: set[str] = set()
    for mark in {_image_mark(llm, number) for number in range(1, _MAX_NUMBERED_IMAGES + 1)}:
        parts = {token for token in special if token in mark}  # Qwen-VL's mark also has begin and end tokens
        placeholders |= parts or {mark}
    ids = [getattr(config, f"{kind}_token_{name}", None) for kind in ("image", "video") for name in ("id", "index")]
    placeholders |= {token for token, number in tokenizer.get_added_vocab().items() if number in ids}
    return text_guard(tokenizer, placeholders, has_turns=has_turns)


def _start(config: ModelConfig, arguments: Any, pressure: Pressure) -> AsyncLLM:
    """Raises `ConfigError` with the reason, which the engine core may have written to a file."""
    with tempfile.TemporaryDirectory(prefix="serve_app-") as folder:
        failure_file = Path(folder) / "failure.txt"
        os.environ[FAILURE_FILE] = str(failure_file)
        try:
            return _async_llm(arguments, pressure, has_ranks=config.num_ranks > 1)
        except Exception as exc:  # an engine boundary: vLLM's start raises anything at all
            if config.pipeline_parallel_size > 1 and isinstance(exc, NotImplementedError):
                raise ConfigError(
                    f"source '{config.source}' has an architecture that vLLM can't split into stages: raise "
                    "tensor_parallel_size instead of pipeline_parallel_size"
                ) from exc
            reason = failure_file.read_text(encoding="utf-8") if failure_file.exists() else first_line(exc)
            reason = " ".join(reason.split())[:600]
            raise ConfigError(f"source '{config.source}' can't be started on vLLM: {reason}") from exc
        finally:
            del os.environ[FAILURE_FILE]


def _async_llm(arguments: Any, pressure: Pressure, *, has_ranks: bool) -> AsyncLLM:
    loggers: list[Any] = [lambda *_: pressure]
    if not has_ranks:
        return AsyncLLM.from_engine_args(arguments, stat_loggers=loggers)
    # The class isn't given as `distributed_executor_backend`, because vLLM compares that with "ray" in places.
    vllm_config = arguments.create_engine_config(UsageContext.ENGINE_CONTEXT)  # as `from_engine_args` does
    log_stats = not arguments.disable_log_stats
    return AsyncLLM(vllm_config, RankExecutor, log_stats, log_requests=False, stat_loggers=loggers)


def _renderer(llm: AsyncLLM, options: PromptOptions, is_plain: bool, reasoning_parser: str | None) -> OnlineRenderer:
    return OnlineRenderer(
        llm.model_config,
        llm.renderer,
        request_logger=None,
        chat_template=PLAIN_TEMPLATE if is_plain else options.chat_template,
        chat_template_content_format=options.chat_template_content_format,
        enable_auto_tools=options.tool_call_parser is not None,
        tool_parser=options.tool_call_parser,
        tool_strict_level=options.tool_strict_level,
        reasoning_parser=reasoning_parser,
        default_chat_template_kwargs=options.default_chat_template_kwargs,
    )


def _is_plain(folder: Path, model_type: str) -> bool:
    """Whether there is no chat template: neither the checkpoint's own, nor one of vLLM's that suits captions."""
    if has_chat_template(folder):
        return False
    is_for_questions = architecture_of(model_type).images != "inline"  # vLLM's for BLIP-2: «Question: … Answer:»
    return is_for_questions or get_chat_template_fallback_path(model_type, str(folder)) is None


def _sampling_defaults(llm: AsyncLLM) -> dict[str, Any]:
    """The checkpoint's own generation config; greedy unless it says `do_sample`."""
    defaults = dict(llm.model_config.get_diff_sampling_param())
    own = llm.model_config.try_get_generation_config()
    if "temperature" not in defaults and not own.get("do_sample"):
        defaults["temperature"] = 0.0
    return defaults


def _rank(adapter: Path) -> int:
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return max(int(rank) for rank in (config.get("r") or 0, *(config.get("rank_pattern") or {}).values()))

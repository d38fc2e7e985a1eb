"""A folder or hub id to a transformers model with its processor, or a sentence that says what is wrong with it."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from serve_app.config import ModelConfig
from serve_app.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode. `processor` is None for models that read text only."""

    model: Any
    tokenizer: Any
    processor: Any | None
    context_length: int | None
    generation_config: GenerationConfig
    sampling_temperature: float  # of the checkpoint's own generation config; 0 where it doesn't sample
    sampling_top_p: float


def load_model(config: ModelConfig) -> LoadedModel:
    """Load from safetensors (unless configured otherwise). Raises `ConfigError`; blocks for as long as it takes."""
    torch.set_num_threads(max(1, round(config.num_cpus)))
    source = _source(config)
    try:
        return _load(source, config)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, ImportError) as exc:
        raise ConfigError(f"source '{config.source}' can't be loaded: {_first_line(exc)}") from exc


def _source(config: ModelConfig) -> str:
    if config.source == "demo":
        from serve_app.demo import CHECKPOINT

        return str(CHECKPOINT)
    path = Path(config.source)
    if path.is_dir():
        if config.weights_format == "safetensors" and not any(path.glob("*.safetensors")):
            raise ConfigError(
                f"{path} has no *.safetensors: convert the weights, or set weights_format: any if you trust them "
                "(other formats can run code)"
            )
        return str(path)
    if config.source.startswith(("/", "./", "../", "~")) or config.source.count("/") != 1:
        raise ConfigError(f"source '{config.source}' is no folder here and no hub id: name one of the two")
    return config.source


def _load(source: str, config: ModelConfig) -> LoadedModel:
    hub = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    architecture = AutoConfig.from_pretrained(source, **hub)
    takes_pictures = architecture.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    is_known = takes_pictures or architecture.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not is_known and not config.trust_remote_code:
        raise ConfigError(f"no engine here serves architecture '{architecture.model_type}'")
    model_class = AutoModelForImageTextToText if takes_pictures else AutoModelForCausalLM
    model = model_class.from_pretrained(
        source, dtype=config.dtype, use_safetensors=config.weights_format == "safetensors" or None, **hub,
        **config.engine_args,
    )  # fmt: skip
    device = "cuda" if config.num_gpus and torch.cuda.is_available() else "cpu"
    model = model.eval().to(device)
    processor = AutoProcessor.from_pretrained(source, **hub) if takes_pictures else None
    tokenizer = processor.tokenizer if processor is not None else AutoTokenizer.from_pretrained(source, **hub)
    tokenizer.padding_side = "right" if architecture.is_encoder_decoder else "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    context_length = getattr(architecture.get_text_config(), "max_position_embeddings", None)
    if config.max_context_tokens is not None:
        context_length = min(context_length or config.max_context_tokens, config.max_context_tokens)
    own = model.generation_config
    return LoadedModel(
        model, tokenizer, processor, context_length, _greedy(own, tokenizer),
        float(own.temperature or 1.0) if own.do_sample else 0.0, float(own.top_p or 1.0),
    )  # fmt: skip


def _greedy(own: GenerationConfig, tokenizer: Any) -> GenerationConfig:
    """The checkpoint's generation config without its sampling, which each row does for itself."""
    config = copy.deepcopy(own)
    config.do_sample, config.num_beams, config.max_length = False, 1, None
    config.temperature = config.top_p = config.top_k = config.min_p = config.typical_p = None
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    return config


def _first_line(exc: BaseException) -> str:
    lines = str(exc).strip().splitlines()
    return f"{lines[0][:300]}" if lines else type(exc).__name__

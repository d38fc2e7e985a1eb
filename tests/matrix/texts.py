"""Builders of the models that read text only."""

from pathlib import Path
from typing import Any

from transformers import (
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.matrix.parts import decoder, opt, save
from tests.tiny_models import tokenizer


def build_qwen2(folder: Path) -> Path:
    return _decoder(folder, Qwen2Config, Qwen2ForCausalLM, "qwen2")


def build_qwen3(folder: Path) -> Path:
    return _decoder(folder, Qwen3Config, Qwen3ForCausalLM, "qwen3")


def build_opt(folder: Path) -> Path:
    tokens = tokenizer(chat_template=None)
    return save(folder, OPTForCausalLM(OPTConfig(**opt(len(tokens)))), tokens)


def _decoder(folder: Path, config: Any, model: Any, model_type: str) -> Path:
    tokens = tokenizer()
    return save(folder, model(config(**decoder(model_type, len(tokens)))), tokens)

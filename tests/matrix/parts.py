"""What several builders need: small configurations of towers and language models, and the saving of a checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import BertTokenizer

from tests.tiny_models import CONTEXT_LENGTH, text_config, vision_config

SPREAD = 0.3  # of the random weights: with the usual 0.02 every answer would be one token over and over
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:?!"


def save(folder: Path, model: Any, *others: Any) -> Path:
    """Write the model with weights drawn anew, every matrix alike, and what belongs to it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.normal_(0, SPREAD, generator=generator)
    model.save_pretrained(folder)
    for other in others:
        other.save_pretrained(folder)
    return folder


def save_json(path: Path, values: dict[str, Any]) -> None:
    """A processor's configuration, where its class can't be made for want of torchvision."""
    path.write_text(json.dumps(values))


def square(size: int) -> dict[str, int]:
    return {"height": size, "width": size}


def decoder(model_type: str, num_tokens: int, **more: Any) -> dict[str, Any]:
    """A decoder of two layers, 64 wide, whose special tokens are `tiny_models.tokenizer`'s."""
    return text_config(num_tokens) | {"model_type": model_type, "head_dim": 32, **more}


def opt(num_tokens: int) -> dict[str, Any]:
    return {
        "model_type": "opt", "vocab_size": num_tokens, "hidden_size": 64, "ffn_dim": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "word_embed_proj_dim": 64, "max_position_embeddings": CONTEXT_LENGTH,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def t5(num_tokens: int) -> dict[str, Any]:
    return {
        "model_type": "t5", "vocab_size": num_tokens, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2,
        "num_decoder_layers": 2, "num_heads": 2, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0,
    }  # fmt: skip


def tower(model_type: str, **more: Any) -> dict[str, Any]:
    """A vision transformer of two layers on 32 × 32 pixels: 16 patches."""
    return vision_config(model_type) | more


def bert_tokenizer(*more: str) -> Any:
    """BERT's own tokenizer class, with words spelled letter by letter."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *more]
    pieces = special + list(_LETTERS) + [f"##{letter}" for letter in _LETTERS]
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})

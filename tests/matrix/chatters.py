"""Builders of the models that chat about images: LLaVA and its kin, Idefics and its kin, the Gemmas."""

from pathlib import Path
from typing import Any

from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.matrix.parts import decoder, save, save_json, square, tower
from tests.tiny_models import CHAT_TEMPLATE, spell_as_hub, tokenizer


def build_joycaption(folder: Path) -> Path:
    return _llava(folder, "llama")


def build_llava_interleave(folder: Path) -> Path:
    return _llava(folder, "qwen2")


def _llava(folder: Path, text: str) -> Path:
    """A SigLIP tower, whose patches are all used, before a language model."""
    tokens = tokenizer(named={"image_token": "<image>"})
    config = LlavaConfig(
        text_config=decoder(text, len(tokens)), vision_config=tower("siglip_vision_model"),
        image_token_index=3, vision_feature_layer=-2, vision_feature_select_strategy="full",
    )  # fmt: skip
    processor = LlavaProcessor(
        SiglipImageProcessorPil(size=square(32)), tokens, patch_size=8, vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    save(folder, LlavaForConditionalGeneration(config), processor)
    spell_as_hub(folder)
    return folder


def build_llava_next(folder: Path) -> Path:
    tokens = tokenizer(named={"image_token": "<image>"})
    grid = [[32, 64], [64, 32]]
    config = LlavaNextConfig(
        text_config=decoder("llama", len(tokens)), image_token_index=3, image_grid_pinpoints=grid,
        vision_config=tower("clip_vision_model", projection_dim=32),
    )  # fmt: skip
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size=square(32), image_grid_pinpoints=grid),
        tokens, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    save(folder, LlavaNextForConditionalGeneration(config), processor)
    spell_as_hub(folder)
    return folder


def build_idefics2(folder: Path) -> Path:
    tokens = tokenizer(named={"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>"})
    config = Idefics2Config(
        text_config=decoder("mistral", len(tokens)), vision_config=tower("idefics2_vision"), image_token_id=3,
        perceiver_config={
            "hidden_size": 64, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 2,
            "resampler_head_dim": 16, "num_key_value_heads": 2,
        },
    )  # fmt: skip
    pixels = Idefics2ImageProcessorPil(size={"shortest_edge": 24, "longest_edge": 32})
    processor = Idefics2Processor(pixels, tokens, image_seq_len=4, chat_template=CHAT_TEMPLATE)
    return save(folder, Idefics2ForConditionalGeneration(config), processor)


def build_smolvlm(folder: Path) -> Path:
    tokens = tokenizer(named={
        "image_token": "<image>", "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>",
    })  # fmt: skip
    config = SmolVLMConfig(
        text_config=decoder("llama", len(tokens)), vision_config=tower("smolvlm_vision"), image_token_id=3,
        scale_factor=2, pad_token_id=0,
    )  # fmt: skip
    pixels = SmolVLMImageProcessorPil(
        do_image_splitting=False, size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    save(folder, SmolVLMForConditionalGeneration(config), pixels, tokens)
    save_json(folder / "processor_config.json", {"processor_class": "SmolVLMProcessor", "image_seq_len": 4})
    save_json(folder / "video_preprocessor_config.json", {"video_processor_type": "SmolVLMVideoProcessor"})
    return folder


# Tokens of the real tokenizers, which vLLM looks up: PaliGemma's of one line end, Gemma 3's of up to four.
_LINE_END = {"line_end_token": "\n"}
_LINE_ENDS = {f"line_ends_{count}_token": "\n" * count for count in range(1, 5)}


def build_paligemma(folder: Path) -> Path:
    tokens = tokenizer(chat_template=None, named=_LINE_END)
    pixels = SiglipImageProcessorPil(size=square(32))
    pixels.image_seq_length = 16
    processor = PaliGemmaProcessor(pixels, tokens)  # adds its own 1,152 tokens for places and outlines
    config = PaliGemmaConfig(
        text_config=decoder("gemma", len(tokens)), image_token_index=processor.image_token_id, projection_dim=64,
        vision_config=tower("siglip_vision_model", projection_dim=64, vision_use_head=False),
    )  # fmt: skip
    save(folder, PaliGemmaForConditionalGeneration(config), processor)
    spell_as_hub(folder)
    return folder


def build_gemma3(folder: Path) -> Path:
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokens = tokenizer(named=named | _LINE_ENDS)
    text = decoder(
        "gemma3_text", len(tokens), sliding_window=16, query_pre_attn_scalar=16, tie_word_embeddings=False,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    ids: Any = tokens.convert_tokens_to_ids
    config = Gemma3Config(  # untied: a tied one of this size says its last token over and over
        tie_word_embeddings=False,
        text_config=text, vision_config=tower("siglip_vision_model", vision_use_head=False, patch_size=16),
        mm_tokens_per_image=1,  # more would see each other, for which vLLM's attention on CPUs has no mask
        image_token_index=ids("<image_soft_token>"), boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
    )  # fmt: skip
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(size=square(32)), tokens, image_seq_length=1,
        chat_template=CHAT_TEMPLATE.replace("<image>", "<start_of_image>"),
    )  # fmt: skip
    save(folder, Gemma3ForConditionalGeneration(config), processor)
    spell_as_hub(folder)
    return folder

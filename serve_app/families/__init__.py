"""How models are prompted for a caption, as data: each family has a table of styles, lengths, options and tasks.

A checkpoint's configuration says its family. Nothing in it tells JoyCaption's two versions apart, so for Alpha Two
the config file says `family: joycaption-alpha-two`.
"""

from typing import Any, Literal, get_args

from serve_app.config.applications import Family
from serve_app.families.captioners import BLIP, BLIP2, FLORENCE2, GIT, INSTRUCTBLIP, KOSMOS2, PALIGEMMA
from serve_app.families.chatters import GENERIC, INTERNVL, LLAVA, MINICPM, QWEN_VL
from serve_app.families.family import CaptionFamily, Style
from serve_app.families.joycaption import ALPHA_TWO, BETA_ONE
from serve_app.families.wish import Wish, worded

CommonStyle = Literal["short", "detailed", "tags"]
STYLES: tuple[CommonStyle, ...] = get_args(CommonStyle)  # every family has the first, most have all

FAMILIES: dict[str, CaptionFamily] = {
    family.name: family
    for family in (
        GENERIC, BETA_ONE, ALPHA_TWO, BLIP, BLIP2, INSTRUCTBLIP, FLORENCE2, GIT, KOSMOS2, PALIGEMMA, MINICPM, QWEN_VL,
        INTERNVL, LLAVA,
    )
}  # fmt: skip

_MODEL_TYPES: dict[Family, tuple[str, ...]] = {
    "blip": ("blip",),
    "git": ("git",),
    "blip2": ("blip-2",),
    "instructblip": ("instructblip",),
    "florence2": ("florence2",),
    "kosmos2": ("kosmos-2",),
    "paligemma": ("paligemma",),
    "minicpm": ("minicpmv", "minicpmo", "minicpmv4_6"),
    "qwen-vl": ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"),
    "internvl": ("internvl", "internvl_chat"),  # the second is remote code, from before transformers had the first
    "llava": ("llava", "llava_next", "llava_onevision"),
}

__all__ = [
    "FAMILIES", "STYLES", "CaptionFamily", "Style", "caption_prompt", "family_named", "family_of", "family_of_config",
]  # fmt: skip


def family_of(model_type: str, vision_type: str | None = None, text_type: str | None = None) -> Family:
    """The family of a checkpoint, by the `model_type`s of its configuration, its tower's and its language model's."""
    if (model_type, vision_type, text_type) == ("llava", "siglip_vision_model", "llama"):
        return "joycaption"  # a LLaVA with this tower and this language model; LLaVA 1.5 has CLIP
    return next((family for family, types in _MODEL_TYPES.items() if model_type in types), "generic")


def family_of_config(config: Any) -> Family:
    """The family of a checkpoint, by its configuration as transformers reads it."""
    parts = [getattr(getattr(config, name, None), "model_type", None) for name in ("vision_config", "text_config")]
    return family_of(config.model_type, *parts)


def family_named(name: str) -> CaptionFamily:
    """The family of that name; `generic` for one that only a replica of another version knows."""
    return FAMILIES.get(name, GENERIC)


def caption_prompt(family: str, style: str) -> str:
    """The text that is sent beside the image. Raises `InvalidRequest` for a style the family doesn't have."""
    return worded(FAMILIES[family], Wish(style=style)).prompt

"""How models are prompted for a caption, as data: one family, one table of styles, lengths, options and tasks.

Which family a checkpoint is of is told by its configuration, or by the config file where that can't tell: nothing in
JoyCaption's two versions tells them apart, so Alpha Two says `family: joycaption-alpha-two`.
"""

from typing import Any, Literal, get_args

from serve_app.config.applications import Family
from serve_app.families.blips import BLIP, BLIP2, GIT, INSTRUCTBLIP
from serve_app.families.chatters import GENERIC, INTERNVL, LLAVA, MINICPM, QWEN_VL
from serve_app.families.family import CaptionFamily, Style
from serve_app.families.florence2 import FLORENCE2
from serve_app.families.joycaption import ALPHA_TWO, BETA_ONE
from serve_app.families.kosmos2 import KOSMOS2
from serve_app.families.paligemma import PALIGEMMA
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

_OF_MODEL_TYPE: dict[str, Family] = {
    "blip": "blip",
    "git": "git",
    "blip-2": "blip2",
    "instructblip": "instructblip",
    "florence2": "florence2",
    "kosmos-2": "kosmos2",
    "paligemma": "paligemma",
    "minicpmv": "minicpm",
    "minicpmo": "minicpm",
    "minicpmv4_6": "minicpm",
    "qwen2_vl": "qwen-vl",
    "qwen2_5_vl": "qwen-vl",
    "qwen3_vl": "qwen-vl",
    "qwen3_vl_moe": "qwen-vl",
    "internvl": "internvl",
    "internvl_chat": "internvl",  # InternVL before transformers had it: remote code
    "llava": "llava",
    "llava_next": "llava",
    "llava_onevision": "llava",
}

__all__ = [
    "FAMILIES", "STYLES", "CaptionFamily", "Style", "caption_prompt", "family_named", "family_of", "family_of_config",
]  # fmt: skip


def family_of(model_type: str, vision_type: str | None = None, text_type: str | None = None) -> Family:
    """The family of a checkpoint, by the `model_type`s of its configuration, its tower's and its language model's."""
    if (model_type, vision_type, text_type) == ("llava", "siglip_vision_model", "llama"):
        return "joycaption"  # a LLaVA with this tower and this language model; LLaVA 1.5 has CLIP
    return _OF_MODEL_TYPE.get(model_type, "generic")


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

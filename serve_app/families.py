"""How models are prompted for a caption, as data: one family, one table of styles.

A family is a group of models that are prompted alike. `generic` is any chat model that takes pictures; an empty
prompt stands for a caption without a prompt. The prompts are those of the models' cards.
"""

from typing import Any, Literal, get_args

from serve_app.config import Family
from serve_app.errors import InvalidRequest
from serve_app.strict import nearest_hint

Style = Literal["short", "detailed", "tags"]
STYLES: tuple[Style, ...] = get_args(Style)

_PROMPTS: dict[str, dict[str, str]] = {
    "generic": {
        "short": "Write a short caption for this picture.",
        "detailed": "Describe this picture in detail.",
        "tags": "List tags for this picture, separated by commas.",
    },
    # huggingface.co/spaces/fancyfeast/joy-caption-alpha-two: "Descriptive" and "Booru tag list"
    "joycaption": {
        "short": "Write a short descriptive caption for this image in a formal tone.",
        "detailed": "Write a long descriptive caption for this image in a formal tone.",
        "tags": "Write a list of Booru tags for this image.",
    },
    # huggingface.co/Salesforce/blip-image-captioning-base, huggingface.co/microsoft/git-base-coco: unconditional
    "blip": {"short": ""},
    # huggingface.co/Salesforce/blip2-opt-2.7b (and its paper's prompt for captions, arxiv.org/abs/2301.12597)
    "blip2": {"short": "a photo of", "detailed": "Question: What is shown in the photo in detail? Answer:"},
    # huggingface.co/Salesforce/instructblip-vicuna-7b; short: the captioning templates of arxiv.org/abs/2305.06500
    "instructblip": {
        "short": "Write a short description for the image.",
        "detailed": "Write a detailed description for the image.",
    },
    # huggingface.co/microsoft/Florence-2-large; <MORE_DETAILED_CAPTION> may be sent as the prompt
    "florence2": {"short": "<CAPTION>", "detailed": "<DETAILED_CAPTION>"},
    # huggingface.co/microsoft/kosmos-2-patch14-224, without <grounding>, which adds places to the text
    "kosmos2": {"short": "An image of", "detailed": "Describe this image in detail:"},
    # huggingface.co/google/paligemma-3b-mix-224
    "paligemma": {"short": "caption en", "detailed": "describe en"},
    # huggingface.co/openbmb/MiniCPM-V-2_6 asks plain questions
    "minicpm": {
        "short": "Describe the image in one sentence.",
        "detailed": "Please describe the image in detail.",
        "tags": "List tags for the image, separated by commas.",
    },
}

_OF_MODEL_TYPE: dict[str, Family] = {
    "blip": "blip",
    "git": "blip",
    "blip-2": "blip2",
    "instructblip": "instructblip",
    "florence2": "florence2",
    "kosmos-2": "kosmos2",
    "paligemma": "paligemma",
    "minicpmv": "minicpm",
    "minicpmo": "minicpm",
    "minicpmv4_6": "minicpm",
}


def family_of(model_type: str, vision_type: str | None = None, text_type: str | None = None) -> Family:
    """The family of a checkpoint, by the `model_type`s of its configuration, its tower's and its language model's."""
    if (model_type, vision_type, text_type) == ("llava", "siglip_vision_model", "llama"):
        return "joycaption"  # a LLaVA with this tower and this language model; LLaVA 1.5 has CLIP
    return _OF_MODEL_TYPE.get(model_type, "generic")


def family_of_config(config: Any) -> Family:
    """The family of a checkpoint, by its configuration as transformers reads it."""
    parts = [getattr(getattr(config, name, None), "model_type", None) for name in ("vision_config", "text_config")]
    return family_of(config.model_type, *parts)


def caption_prompt(family: str, style: str) -> str:
    """The text that is sent beside the picture. Raises `InvalidRequest` for a style the family doesn't have."""
    prompts = _PROMPTS[family]
    if style not in prompts:
        known = f" for models of the family '{family}'" if style in STYLES else ""
        raise InvalidRequest(f"style '{style}' is unknown{known}{nearest_hint(style, prompts)}", "style")
    return prompts[style]

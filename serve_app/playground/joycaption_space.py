"""The fields of a caption request from what clients send to JoyCaption's Space (its `/stream_chat`).

The Space is huggingface.co/spaces/fancyfeast/joy-caption-alpha-two (and …-beta-one): a caption type, a length («any»,
a word or a number of words), extra sentences, a name for them, and a prompt that overrides all of it. A model of that
family takes them as they are; for another one the type becomes the nearest of its styles.
"""

from collections.abc import Sequence
from typing import Any

from serve_app.families.family import LENGTHS, NAME_OPTION, slug
from serve_app.families.wish import ANY_LENGTH

TYPES = ("Descriptive", "Descriptive (Casual)", "Straightforward", "Stable Diffusion Prompt", "MidJourney",
         "Danbooru tag list", "e621 tag list", "Rule34 tag list", "Booru-like tag list", "Art Critic",
         "Product Listing", "Social Media Post")  # fmt: skip
TYPE, LENGTH = "Descriptive", "long"  # the Space's own defaults
SPACE_LENGTHS = (ANY_LENGTH, *LENGTHS, *(str(words) for words in range(20, 261, 10)))
_SHORT_WORDS = 30  # up to here an answer is one sentence
_SHORT = {slug(word) for word in ("very short", "short")}


def fields_of(
    styles: dict[str, Any],
    caption_type: str,
    caption_length: str,
    extra_options: Sequence[str],
    name: str,
    custom_prompt: str,
) -> dict[str, Any]:
    """What to send to `/v1/captions` for a model that understands `styles` (of `/v1/captions/styles`).

    What neither the model nor this translation knows is sent as it is, for the service to refuse by its name.
    """
    if custom_prompt.strip():
        return {"prompt": custom_prompt}
    fields = _style_and_length(styles, caption_type, str(caption_length).strip())
    if extra_options:
        fields["options"] = list(extra_options)
    needs_name = any("{name}" in option or slug(option) == NAME_OPTION for option in extra_options)
    return fields | ({"name": name.strip()} if needs_name and name.strip() else {})


def _style_and_length(styles: dict[str, Any], caption_type: str, length: str) -> dict[str, Any]:
    by_name = {style["name"]: style for style in styles["styles"]}
    if slug(caption_type) in by_name:
        wanted_length = length_of(length) if styles["lengths"] else None
        return {"style": caption_type} | ({} if wanted_length is None else {"length": wanted_length})
    if slug(caption_type) not in {slug(kind) for kind in TYPES} and "tag_list" not in slug(caption_type):
        return {"style": caption_type}
    style_name = "detailed"
    if "tag_list" in slug(caption_type):
        style_name = "tags"
    elif slug(length) in _SHORT or (isinstance(words := length_of(length), int) and words <= _SHORT_WORDS):
        style_name = "short"
    return {"style": style_name if style_name in by_name else "short"}


def length_of(text: str) -> int | str | None:
    """The field `length`: words as a number, a word for it, or None for any."""
    if slug(text) in ("", ANY_LENGTH):
        return None
    return int(text) if text.isascii() and text.isdigit() else text

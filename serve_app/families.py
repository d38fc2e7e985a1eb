"""How models are prompted for a caption, as data: one family, one table of styles.

A family is a group of models that are prompted alike. `generic` is any chat model that takes pictures.
"""

from typing import Literal, get_args

from serve_app.config import nearest_hint
from serve_app.errors import InvalidRequest

Style = Literal["short", "detailed", "tags"]
STYLES: tuple[Style, ...] = get_args(Style)

_PROMPTS: dict[str, dict[str, str]] = {
    "generic": {
        "short": "Write a short caption for this picture.",
        "detailed": "Describe this picture in detail.",
        "tags": "List tags for this picture, separated by commas.",
    }
}


def caption_prompt(family: str, style: str) -> str:
    """The text that is sent beside the picture. Raises `InvalidRequest` for a style the family doesn't have."""
    prompts = _PROMPTS[family]
    if style not in prompts:
        raise InvalidRequest(f"style '{style}' is unknown{nearest_hint(style, prompts)}", "style")
    return prompts[style]

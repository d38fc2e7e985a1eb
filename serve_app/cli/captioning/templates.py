"""Words of an image's own in a prompt or around a caption: `{name}`, `{folder}`, `{text}`, and `{caption}`."""

import os
import re
from dataclasses import dataclass
from typing import Final

from serve_app.cli.captioning.inputs.image import FoundImage
from serve_app.cli.captioning.places import place

_FIELD: Final = re.compile(r"\{(name|folder|text|tags|caption)\}")


@dataclass(frozen=True, slots=True)
class Template:
    """`text` with an image's words in the place of its fields; other braces stand for themselves.

    `{name}` is the file's name without extension, `{folder}` its folder's, `{text}` what stands in the file beside it
    with `extension`, such as tags that somebody wrote (so `{tags}` means the same); nothing where there is none.
    `{caption}` is for a second model's prompt.
    """

    text: str
    extension: str = ".txt"

    def of(self, image: FoundImage, caption: str | None = None) -> str:
        """`caption` None: `{caption}` stands for itself."""
        return _FIELD.sub(lambda field: self._value(field, image, caption), self.text)

    def _value(self, field: re.Match[str], image: FoundImage, caption: str | None) -> str:
        match field[1]:
            case "name":
                return os.path.splitext(os.path.basename(image.inner_path))[0]
            case "folder":
                return os.path.basename(os.path.dirname(place(image.inner_path)))
            case "caption":
                return field[0] if caption is None else caption
        return image.text_beside(self.extension)

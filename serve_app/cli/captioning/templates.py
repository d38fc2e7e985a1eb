"""Words of an image's own in a prompt or around a caption: `{name}`, `{folder}` and `{text}`."""

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from serve_app.cli.captioning.places import place

_FIELD: Final = re.compile(r"\{(name|folder|text)\}")
_LONGEST_TEXT: Final = 20_000  # characters


@dataclass(frozen=True, slots=True)
class Template:
    """`text` with an image's words in the place of its fields; other braces stand for themselves.

    `{name}` is the file's name without extension, `{folder}` its folder's, `{text}` what stands in the file beside it
    with `extension`, such as tags that somebody wrote; nothing where there is none.
    """

    text: str
    extension: str = ".txt"

    def of(self, path: str) -> str:
        return _FIELD.sub(lambda field: self._value(field[1], path), self.text)

    def _value(self, name: str, path: str) -> str:
        stem = os.path.splitext(path)[0]
        match name:
            case "name":
                return os.path.basename(stem)
            case "folder":
                return os.path.basename(os.path.dirname(place(path)))
        with suppress(OSError), open(f"{stem}{self.extension}", encoding="utf-8", errors="replace") as file:
            return file.read(_LONGEST_TEXT).strip()
        return ""

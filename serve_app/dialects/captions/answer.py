"""The answer about an image: its captions, their prompt and what they cost, or why there is none."""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from serve_app.dialects.usage import Usage
from serve_app.errors import ServeAppError, error_json
from serve_app.exchange.connection import event_bytes
from serve_app.families.family import Reading
from serve_app.families.regions import read_regions
from serve_app.messages import Chunk, merged

_TAG_ENDS = re.compile(r"[,;\n]")
_BULLET = re.compile(r"^(?:[-*•]|\d{1,3}[.)])\s+")


@dataclass(frozen=True, slots=True)
class CaptionPrompt:
    """What a model is prompted with for a caption, and so how its answer is to be read.

    `repeats_prompt`: an answer may begin with the prompt, which is no part of the caption.
    """

    text: str
    system: str | None = None
    reading: Reading = "text"
    form: Literal["text", "tags", "json"] = "text"
    repeats_prompt: bool = False
    num_captions: int = 1

    def caption_json(self, answer: str) -> dict[str, Any]:
        """One answer as the client gets it."""
        caption, regions = read_regions(self.without_echo(answer), self.reading)
        fields: dict[str, Any] = {"caption": caption.strip()}
        if self.reading != "text":
            fields["regions"] = [region.as_json() for region in regions]
        if self.form == "tags":
            fields["tags"] = tags_of(caption)
        elif self.form == "json":
            fields["json"] = _parsed(caption)
        return fields

    def without_echo(self, answer: str) -> str:
        is_echo = self.repeats_prompt and bool(self.text) and answer.lstrip().startswith(self.text)
        return answer.lstrip().removeprefix(self.text) if is_echo else answer

    def is_perhaps_echo(self, beginning: str) -> bool:
        """Whether an answer that begins like this may yet turn out to repeat the prompt."""
        begun = beginning.lstrip()
        return self.repeats_prompt and len(begun) < len(self.text) and self.text.startswith(begun)


def tags_of(caption: str) -> list[str]:
    """The tags of a list, each once, in order, without bullets, numbers and the full stop."""
    pieces = (_BULLET.sub("", piece.strip()).strip().removesuffix(".") for piece in _TAG_ENDS.split(caption))
    return list(dict.fromkeys(piece for piece in pieces if piece))


def _parsed(caption: str) -> Any:
    """None where it is no JSON: it was cut off."""
    try:
        return json.loads(caption)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class Caption:
    """What became of the image at `index`: one whole chunk for each caption.

    `total_s` counts from the image's turn to its caption; None in a stream, whose end another process sees.
    `guard` is the guard's report, `usage` what all its attempts cost.
    """

    index: int
    prompt: CaptionPrompt
    chunks: tuple[Chunk, ...]
    image_s: float
    usage: Usage
    total_s: float | None = None
    guard: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        prompt = self.prompt
        captions = [prompt.caption_json(c.text) | {"finish_reason": c.finish_reason} for c in self.chunks]
        value = {"object": "caption", "index": self.index, **captions[0], "prompt": prompt.text}
        if prompt.system is not None:
            value["system"] = prompt.system
        if prompt.num_captions > 1:
            value["captions"] = captions
        if self.guard is not None:
            value["guard"] = self.guard
        return value | {"usage": self.usage.as_json(), "timing": self._timing()}

    def _timing(self) -> dict[str, float]:
        seconds = {"image_s": self.image_s, "queue_s": self.chunks[0].queue_s, "total_s": self.total_s}
        return {name: round(value, 6) for name, value in seconds.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the image at `index` has no caption."""

    index: int
    error: ServeAppError

    def as_json(self) -> dict[str, Any]:
        return {"object": "error", "index": self.index} | error_json(self.error)


Outcome = Caption | Failure


class CaptionEvents:
    """The events of one image's streamed captions, an `EventEncoder`: their pieces, then the whole."""

    def __init__(self, index: int, prompt: CaptionPrompt, image_s: float) -> None:
        self._index = index
        self._prompt = prompt
        self._image_s = image_s
        self._chunks: list[Chunk] = []
        self._held: dict[int, str] = {}
        self._is_past_echo: set[int] = set()

    def encode(self, chunk: Chunk) -> bytes:
        self._chunks.append(chunk)
        delta = self._delta(chunk)
        if not delta:
            return b""
        choice = {"choice": chunk.index} if self._prompt.num_captions > 1 else {}
        return event_bytes({"object": "caption.chunk", "index": self._index, **choice, "delta": delta})

    def end(self) -> bytes:
        whole = merged(self._chunks)
        return event_bytes(Caption(self._index, self._prompt, whole, self._image_s, Usage.of(whole)).as_json())

    def _delta(self, chunk: Chunk) -> str:
        """The chunk's text, held back while it may be the prompt once more."""
        if not self._prompt.repeats_prompt or chunk.index in self._is_past_echo:
            return chunk.text
        text = self._held.pop(chunk.index, "") + chunk.text
        if chunk.finish_reason is None and self._prompt.is_perhaps_echo(text):
            self._held[chunk.index] = text
            return ""
        self._is_past_echo.add(chunk.index)
        return self._prompt.without_echo(text)

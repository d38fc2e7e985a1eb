"""What a family of captioners is, as data: its styles, lengths, extra options, tasks and languages.

Knows no family by name. A family's words are its authors' own, to the letter, because models were trained on them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

NAME_OPTION = "refer_character_name"  # the one option that needs a word of the client's: its `{name}`
LENGTHS = ("very short", "short", "medium-length", "long", "very long")  # JoyCaption's words for it

Reading = Literal["text", "boxes", "bare boxes", "quads", "polygons", "boxes or polygons", "phrases", "entities"]


def slug(label: str) -> str:
    """A label as requests spell it: «Descriptive (Casual)» is `descriptive_casual`."""
    return "_".join(re.findall(r"[^\W_]+", label.lower()))


@dataclass(frozen=True, slots=True)
class Style:
    """One way to caption. `label` is its authors' word for it.

    `prompt` has no length, `in_words` has `{word_count}` for a number of words, `at_length` has `{length}` for one
    of `LENGTHS`; these two are None where the model knows no lengths. `{code}` in a prompt stands for a language.
    """

    label: str
    prompt: str
    in_words: str | None = None
    at_length: str | None = None
    lists_tags: bool = False

    @property
    def name(self) -> str:
        return slug(self.label)

    @property
    def takes_lengths(self) -> bool:
        return self.in_words is not None


@dataclass(frozen=True, slots=True)
class Task:
    """A task token and the sentence that its processor puts in its place.

    `needs` is what a request must send with it, `reading` how to read the answer's text.
    """

    token: str
    prompt: str
    needs: Literal["nothing", "text", "region"] = "nothing"
    reading: Reading = "text"

    @property
    def name(self) -> str:
        return slug(self.token)


@dataclass(frozen=True, slots=True)
class CaptionFamily:
    """Models that are prompted alike.

    `system` is the message that opens the conversation, if any. `options` are sentences that may follow a prompt, by
    their names. `in_language` is added to the prompt for languages other than English; where it is None and no prompt
    has `{code}`, the models write English only. `repeats_prompt`: some engines' answers begin with the prompt, which
    isn't part of the caption. `grounding`: the word in a prompt that makes an answer say where things are, which is
    read as `entities`.
    """

    name: str
    styles: tuple[Style, ...]
    system: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    tasks: tuple[Task, ...] = ()
    in_language: str | None = None
    repeats_prompt: bool = False
    grounding: str | None = None

    @property
    def speaks_languages(self) -> bool:
        return self.in_language is not None or any("{code}" in style.prompt for style in self.styles)

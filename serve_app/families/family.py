"""What a family of captioners is, as data: its styles, lengths, extra options, tasks and languages.

Knows no family by name. The words are the authors' own: models were trained on exactly these, and a letter more or
less is another prompt.
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

    `prompt` is sent where no length is asked for; `in_words`, with `{word_count}`, where a number of words is, and
    `at_length`, with `{length}`, where one of `LENGTHS` is. None: the model knows no such lengths. `{code}` stands
    for a language.
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
    """A task token and what its processor makes of it. `needs` is what a request must send along with it.

    `reading` says how the answer's text is to be read.
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

    `system` is the message that opens the conversation, where there is one. `options` are sentences that a prompt
    may have besides, by their names. `in_language` is added to the prompt for any other language than English; where
    it is None and no prompt has `{code}`, the models write English only. `repeats_prompt`: some engines' answers of
    these begin with the prompt, which is no part of the caption. `grounding`: the word in a prompt that makes an
    answer say where things are, as `entities`.
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

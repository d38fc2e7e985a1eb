"""The fields of a caption request beside its images: wishes, sampling, the answer's form, and the guard.

JSON bodies and multipart forms share them. Contradictions are refused here; what the model's family doesn't have is
refused by `families/wish.py`, once the model is known.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from serve_app.dialects.captions.quality import FINDINGS, Finding
from serve_app.dialects.sampling_body import SamplingBody
from serve_app.exchange.body import Body, LongText, Whole, wrong
from serve_app.families.wish import Wish
from serve_app.messages import OutputFormat, Sampling
from serve_app.output_format import check_output_format
from serve_app.strict import nearest_hint

MAX_OPTIONS = 32
MAX_CHECKS = 32
MAX_NAME_CHARACTERS = 100
MOST_WORDS = 1000
MOST_RETRIES = 5

Short = Annotated[str, Field(min_length=1, max_length=200)]  # looked up among names, and repeated if it is none
Option = Annotated[str, Field(min_length=1, max_length=500)]


class CaptionFormat(Body):
    """`tags`: the caption's tags as a list too. `json`: an object, of `schema` where there is one."""

    type: Literal["text", "tags", "json"]
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _usable_schema(self) -> Self:
        if self.schema_ is not None and self.type != "json":
            raise wrong("schema", f"a format of type '{self.type}' has none: leave it out, or send type json")
        if self.schema_ is not None:
            try:
                check_output_format(self.output_format())
            except ValueError as exc:
                raise wrong("schema", str(exc)) from exc
        return self

    def output_format(self) -> OutputFormat:
        if self.schema_ is None:
            return OutputFormat("json_object")
        return OutputFormat("json_schema", json.dumps(self.schema_, ensure_ascii=False))


class Guard(Body):
    """Look at each caption, and ask again where something is wrong with it, `retries` times at most."""

    checks: Annotated[list[Finding], Field(max_length=MAX_CHECKS, fail_fast=True)] = Field(
        default_factory=lambda: list(FINDINGS), min_length=1
    )
    retries: Whole = Field(2, ge=0, le=MOST_RETRIES)

    @field_validator("checks", mode="before")
    @classmethod
    def _are_checks(cls, checks: Any) -> Any:
        for check in checks[: MAX_CHECKS + 1] if isinstance(checks, list) else ():
            if isinstance(check, str) and check not in FINDINGS:
                raise ValueError(f"'{check[:100]}' is unknown{nearest_hint(check[:100], FINDINGS)}")
        return checks


def _as_format(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


def _as_guard(value: Any) -> Any:
    """`true` is a guard with its defaults, `false` none."""
    return ({} if value else None) if isinstance(value, bool) else value


class CaptionFields(SamplingBody):
    """The fields that both encodings have. `prompt` stands for itself; the default temperature is 0, greedy."""

    style: Short | None = None
    length: Annotated[Whole, Field(ge=1, le=MOST_WORDS)] | Short | None = None
    options: Annotated[list[Option], Field(max_length=MAX_OPTIONS, fail_fast=True)] | None = None
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)] | None = None
    language: Short | None = None
    task: Short | None = None
    prompt: LongText | None = Field(None, min_length=1)
    format: Annotated[
        CaptionFormat | None,
        BeforeValidator(_as_format, json_schema_input_type=CaptionFormat | Literal["text", "tags", "json"] | None),
    ] = None
    guard: Annotated[Guard | None, BeforeValidator(_as_guard, json_schema_input_type=Guard | bool | None)] = None
    temperature: float | None = Field(0.0, ge=0, le=2)
    stream: bool = False

    @model_validator(mode="after")
    def _not_contradictory(self) -> Self:
        if self.n is not None and self.n > 1 and self.temperature == 0:
            raise wrong("n", f"the same caption would come {self.n} times: send a temperature above 0 as well")
        if self.guard is not None and self.stream:
            raise wrong("guard", "a caption that has been streamed can't be taken back: leave out one of the two")
        if self.guard is not None and self.num_answers > 1:
            raise wrong("guard", "it looks at one caption for each image: leave out n")
        if self.task is not None and self.format is not None and self.format.type != "text":
            raise wrong("format", "a task's answer has a form of its own: leave out one of the two")
        return self

    @property
    def form(self) -> Literal["text", "tags", "json"]:
        return self.format.type if self.format else "text"

    def wish(self) -> Wish:
        """Tags are asked for as tags, where no style says otherwise."""
        style = self.style
        if self.form == "tags" and style is None and self.prompt is None:
            style = "tags"
        options: Sequence[str] = self.options or ()
        return Wish(style, self.length, tuple(options), self.name, self.language, self.task, self.prompt)

    def field_names(self, image: str) -> dict[str, str]:
        """What this request calls the fields that an engine has another name for; `image` is the one it is about."""
        return {"messages": image if self.prompt is None else "prompt", "response_format": "format"}

    def sampling(self) -> Sampling:
        return self.sampling_with(self.format.output_format() if self.format and self.form == "json" else None)

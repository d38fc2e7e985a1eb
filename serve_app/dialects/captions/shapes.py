"""Answers and events of captions as types, for the OpenAPI page."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from serve_app.dialects.shapes import Count, FinishReason, Usage
from serve_app.exchange.dialect import ErrorFields


class Region(TypedDict):
    label: str
    box: NotRequired[list[float]]
    quad: NotRequired[list[list[float]]]
    polygons: NotRequired[list[Any]]
    span: NotRequired[list[Count]]


class OneCaption(TypedDict):
    caption: str
    finish_reason: FinishReason
    regions: NotRequired[list[Region]]
    tags: NotRequired[list[str]]
    json: NotRequired[Any]


class GuardReport(TypedDict):
    passed: bool
    findings: list[str]
    checks: list[str]
    chosen: Count
    attempts: list[dict[str, Any]]
    stopped: NotRequired[str]


class CaptionTiming(TypedDict):
    image_s: float
    queue_s: NotRequired[float]
    total_s: NotRequired[float]


class Caption(OneCaption):
    object: Literal["caption"]
    index: Count
    prompt: str
    usage: Usage
    timing: CaptionTiming
    system: NotRequired[str]
    captions: NotRequired[list[OneCaption]]
    guard: NotRequired[GuardReport]


class CaptionFailure(TypedDict):
    object: Literal["error"]
    index: Count
    error: ErrorFields


class CaptionChunk(TypedDict):
    object: Literal["caption.chunk"]
    index: Count
    delta: str
    choice: NotRequired[Count]


class CaptionList(TypedDict):
    id: str
    object: Literal["list"]
    created: Count
    model: str
    data: list[Caption | CaptionFailure]
    usage: Usage


class CaptionStyle(TypedDict):
    name: str
    label: str
    prompt: str
    prompt_in_words: str | None
    prompt_at_length: str | None
    lists_tags: bool


class CaptionOption(TypedDict):
    name: str
    text: str


class CaptionTask(TypedDict):
    name: str
    token: str
    prompt: str
    needs: Any
    has_regions: bool


class CaptionStyles(TypedDict):
    object: Literal["caption.styles"]
    model: str
    family: str
    system: str | None
    styles: list[CaptionStyle]
    lengths: list[str]
    options: list[CaptionOption]
    tasks: list[CaptionTask]
    languages: list[str]
    image_formats: list[str]

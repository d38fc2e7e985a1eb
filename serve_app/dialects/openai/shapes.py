"""OpenAI's answers and events as types, for the OpenAPI page."""

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from serve_app.dialects.shapes import Count, FinishReason, Usage
from serve_app.messages import Task
from serve_app.models.entry import State


class _Frame(TypedDict):
    id: str
    created: Count
    model: str
    system_fingerprint: str


class TopLogprob(TypedDict):
    token: str
    logprob: float
    bytes: list[Count] | None


class ContentLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    content: list[ContentLogprob]
    refusal: None


class CallFunction(TypedDict):
    name: str
    arguments: str


class Call(TypedDict):
    id: str
    type: Literal["function"]
    function: CallFunction


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning: NotRequired[str]
    tool_calls: NotRequired[list[Call]]


class ChatChoice(TypedDict):
    index: Count
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(_Frame):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class CallFunctionDelta(TypedDict):
    name: NotRequired[str]
    arguments: str


class CallDelta(TypedDict):
    index: Count
    function: CallFunctionDelta
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]


class ChatDelta(TypedDict, total=False):
    role: Literal["assistant"]
    content: str
    reasoning: str
    tool_calls: list[CallDelta]


class ChatChunkChoice(TypedDict):
    index: Count
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(_Frame):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]


class CompletionLogprobs(TypedDict):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[Count]


class CompletionChoice(TypedDict):
    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class Completion(_Frame):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(TypedDict):
    index: Count
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CompletionChunk(_Frame):
    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: NotRequired[Usage | None]


class Model(TypedDict):
    id: str
    object: Literal["model"]
    created: Count
    owned_by: str
    state: State
    tasks: list[Task] | None
    engine: str | None
    context_length: Count | None
    root: str
    max_model_len: Count | None
    image_limit: Count | None
    replicas: Count
    version: str | None
    version_note: NotRequired[str]
    parent: NotRequired[str]
    weights: NotRequired[dict[str, float]]
    reason: NotRequired[str]


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[Model]
    refused_config: NotRequired[str]

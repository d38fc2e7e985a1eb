"""TGI's answers and events as types, for the OpenAPI page."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from serve_app.dialects.shapes import Count

TgiFinishReason = Literal["length", "eos_token", "stop_sequence"]


class TgiToken(TypedDict):
    id: Count
    text: str
    logprob: float
    special: bool


class SequenceDetails(TypedDict):
    finish_reason: TgiFinishReason
    generated_tokens: Count
    seed: Count | None
    prefill: Annotated[list[Any], Field(max_length=0)]
    tokens: list[TgiToken]
    top_tokens: NotRequired[list[list[TgiToken]]]


class BestOfSequence(SequenceDetails):
    generated_text: str


class GenerationDetails(SequenceDetails):
    best_of_sequences: NotRequired[list[BestOfSequence]]


class Generation(TypedDict):
    generated_text: str
    details: NotRequired[GenerationDetails]


class StreamDetails(TypedDict):
    finish_reason: TgiFinishReason
    generated_tokens: Count
    seed: Count | None
    input_length: Count


class GenerationEvent(TypedDict):
    index: Count
    token: TgiToken
    generated_text: str | None
    details: StreamDetails | None
    top_tokens: NotRequired[list[TgiToken]]


class ImageAnswer(TypedDict):
    answer: str
    score: float


class Info(TypedDict):
    model_id: str
    model_sha: str | None
    model_pipeline_tag: str
    max_concurrent_requests: Count
    max_best_of: Count
    max_stop_sequences: Count
    max_input_tokens: Count
    max_total_tokens: Count
    validation_workers: Count
    max_client_batch_size: Count
    router: str
    version: str
    sha: str | None
    docker_label: str | None


class PromptToken(TypedDict):
    id: Count
    text: str
    start: Count
    stop: Count


class ChatTokens(TypedDict):
    tokenize_response: list[PromptToken]
    templated_text: str

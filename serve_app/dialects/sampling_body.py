"""Sampling in OpenAI's words, with vLLM's where OpenAI has none: what chats, completions and captions share."""

from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from serve_app.dialects.formats import ResponseFormat, StructuredOutputs, TextFormat
from serve_app.dialects.usage import RunningUsage
from serve_app.exchange.body import Body, Label, Whole, wrong
from serve_app.messages import OutputFormat, Sampling

MAX_ANSWERS = 16
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1000
MAX_TOP_LOGPROBS = 20
MAX_MODEL_CHARACTERS = 256  # twice what a model's name may have: what is longer isn't compared with all of them

# What engines count in 32 bits; one number above that would fail a whole batch.
Count = Annotated[Whole, Field(lt=2**31)]

# vLLM's fields that ask for nothing, as its clients send them.
VLLM_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "return_token_ids": (False,),
    "return_token_offsets": (False,),
    "return_tokens_as_token_ids": (False,),
    "priority": (0,),
    "cache_salt": (),
}


def _few_and_not_empty(stop: Any) -> Any:
    if isinstance(stop, list) and (len(stop) > MAX_STOP_STRINGS or "" in stop):
        raise ValueError(f"takes up to {MAX_STOP_STRINGS} strings, none of them empty")
    return stop


StopString = Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)]
StopStrings = Annotated[
    list[StopString], Field(max_length=MAX_STOP_STRINGS, fail_fast=True), BeforeValidator(_few_and_not_empty)
]


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False  # vLLM's: usage so far in every event, where it is included at all
    include_obfuscation: bool = False  # OpenAI's padding against traffic analysis; this service adds none


class SamplingBody(Body):
    """The sampling fields of all dialects in OpenAI's words. `model` left out means the default of the task."""

    model: str | None = Field(None, max_length=MAX_MODEL_CHARACTERS)
    max_tokens: Count | None = Field(None, ge=1)
    min_tokens: Count | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: Count | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    seed: Whole | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[
        StopStrings | None,
        BeforeValidator(
            lambda v: [v] if isinstance(v, str) else v, json_schema_input_type=StopString | StopStrings | None
        ),
    ] = None
    n: Whole | None = Field(None, ge=1, le=MAX_ANSWERS)

    @property
    def answer_limit(self) -> int | None:
        return self.max_tokens

    @property
    def num_answers(self) -> int:
        return self.n or 1

    @property
    def _top_k(self) -> int | None:
        """Of no probability at all (`top_p` 0) the likeliest token is left, as at OpenAI."""
        if self.top_p == 0:
            return 1
        return None if self.top_k in (-1, 0) else self.top_k

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        limit = self.answer_limit
        if limit is not None and (self.min_tokens or 0) > limit:
            raise wrong("min_tokens", f"it is {self.min_tokens} and the answer has {limit} at most: lower it")
        return self

    def sampling_with(self, output_format: OutputFormat | None, **more: Any) -> Sampling:
        """`more` are fields of `Sampling` that not every dialect has."""
        return Sampling(
            max_tokens=self.answer_limit,
            min_tokens=self.min_tokens or 0,
            temperature=self.temperature,
            top_p=self.top_p or None,
            top_k=self._top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            stop=tuple(self.stop or ()),
            seed=None if self.seed == -1 else self.seed,  # vLLM's clients say so that they have none
            num_answers=self.num_answers,
            output_format=output_format,
            **more,
        )


class GenerationBody(SamplingBody):
    """What chats and completions share beyond that."""

    max_completion_tokens: Count | None = Field(None, ge=1)
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: Label | None = None

    @property
    def answer_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def field_names(self) -> dict[str, str]:
        """What this request calls the fields that an engine has another name for."""
        names = {"response_format": "structured_outputs"} if self.structured_outputs is not None else {}
        if self.max_completion_tokens and not self.max_tokens:
            names["max_tokens"] = "max_completion_tokens"
        return names

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise wrong(
                "max_tokens",
                f"it is {self.max_tokens}, and max_completion_tokens {self.max_completion_tokens}: send one of them",
            )
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "only allowed with stream=true")
        if self.response_format is not None and self.structured_outputs is not None:
            raise wrong("structured_outputs", "there is a response_format as well: send one of them")
        return self

    def running_usage(self) -> RunningUsage:
        options = self.stream_options or StreamOptions()
        return RunningUsage(options.include_usage, options.include_usage and options.continuous_usage_stats)

    def generation_sampling(self, num_logprobs: int | None) -> Sampling:
        return self.sampling_with(self._output_format(), num_logprobs=num_logprobs, ignores_eos=bool(self.ignore_eos))

    def _output_format(self) -> OutputFormat | None:
        if self.structured_outputs is not None:
            return self.structured_outputs.output_format()
        if self.response_format is None or isinstance(self.response_format, TextFormat):
            return None
        return self.response_format.output_format()

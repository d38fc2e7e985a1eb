"""The body of `POST /v1/chat/completions`, field by field, and what it asks of an engine.

Shapes follow https://platform.openai.com/docs/api-reference/chat; sampling fields that OpenAI doesn't have carry
vLLM's names. What can't be honoured is a 400 that names the field; nothing is ignored in silence.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from serve_app.api.body import Body, wrong
from serve_app.api.chat_formats import (
    FunctionTool,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedToolChoice,
    ResponseFormat,
    StructuredOutputs,
    ToolChoice,
)
from serve_app.messages import OutputFormat, Role, Sampling, ToolCall, ToolUse

MAX_ANSWERS = 16
MAX_TOP_LOGPROBS = 20
MAX_TOOLS = 128
MAX_MODEL_CHARACTERS = 256  # twice what a model's name may have: what is longer isn't compared with all of them

# What engines count in 32 bits; one number above that would fail a whole batch.
Count = Annotated[int, Field(lt=2**31)]


class TextPart(Body):
    type: Literal["text"]
    text: str


class ImageAddress(Body):
    url: str
    detail: Literal["auto", "low", "high"] | None = None  # OpenAI's cost hint: every model here sees one size


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: Annotated[ImageAddress, BeforeValidator(lambda v: {"url": v} if isinstance(v, str) else v)]


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class CalledFunction(Body):
    name: str
    arguments: str


class AssistantCall(Body):
    """A call that the assistant made in an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else [] if content is None else content


class ChatMessage(Body):
    """A turn; `content` is a string or a list of parts. `developer` is OpenAI's newer word for `system`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "refusal": (),
        "audio": (),
        "function_call": (),
        "annotations": ([],),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[list[Part], BeforeValidator(_as_parts)] = Field(default_factory=list)
    name: str | None = None
    tool_calls: list[AssistantCall] | None = None
    tool_call_id: str | None = None
    # what a client sends back of an earlier answer; no chat template here reads it
    reasoning: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise wrong("tool_calls", f"only a message of role assistant has them, and this one is '{self.role}'")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise wrong("tool_call_id", "a message of role tool needs it, and no other has it")
        if not self.content and not self.tool_calls:
            raise wrong("content", "the message is empty: send a text or parts")
        return self

    @property
    def internal_role(self) -> Role:
        return "system" if self.role == "developer" else self.role

    @property
    def internal_calls(self) -> tuple[ToolCall, ...]:
        return tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in self.tool_calls or ())


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False  # vLLM's: usage so far in every event, where it is included at all
    include_obfuscation: bool = False  # OpenAI's padding against traffic analysis; this service adds none


class SamplingBody(Body):
    """The sampling fields that every dialect with OpenAI's names shares."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: Count | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[list[str] | None, BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = None

    @field_validator("stop")
    @classmethod
    def _few_and_not_empty(cls, stop: list[str] | None) -> list[str] | None:
        if stop is not None and (len(stop) > 16 or not all(stop)):
            raise ValueError("takes up to 16 strings, none of them empty")
        return stop


class ChatBody(SamplingBody):
    """The body of `POST /v1/chat/completions`. `model` left out means the default chat model.

    Neutral are OpenAI's fields and, from `skip_special_tokens` on, vLLM's, which its clients send with its defaults.
    """

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "logit_bias": ({},),
        "modalities": (["text"],),
        "audio": (),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "verbosity": ("medium",),
        "prediction": (),
        "web_search_options": (),
        "reasoning_effort": (),
        "skip_special_tokens": (True,),
        "spaces_between_special_tokens": (True,),
        "include_stop_str_in_output": (False,),
        "stop_token_ids": ([],),
        "bad_words": ([],),
        "allowed_token_ids": (),
        "prompt_logprobs": (),
        "truncate_prompt_tokens": (),
        "best_of": (1,),
        "use_beam_search": (False,),
        "length_penalty": (1.0,),
        "echo": (False,),
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
        "add_special_tokens": (False,),
        "documents": ([],),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "mm_processor_kwargs": ({},),
        "media_io_kwargs": ({},),
        "include_reasoning": (True,),
        "return_token_ids": (False,),
        "return_token_offsets": (False,),
        "return_tokens_as_token_ids": (False,),
        "priority": (0,),
        "cache_salt": (),
    }

    model: str | None = Field(None, max_length=MAX_MODEL_CHARACTERS)
    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Count | None = Field(None, ge=1)
    min_tokens: Count | None = Field(None, ge=0)
    top_k: Count | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    ignore_eos: bool | None = None
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    tools: list[FunctionTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="after")
    def _not_contradictory(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "only allowed with stream=true")
        limits = {limit for limit in (self.max_tokens, self.max_completion_tokens) if limit is not None}
        if len(limits) > 1:
            raise wrong(
                "max_tokens",
                f"it is {self.max_tokens}, and max_completion_tokens {self.max_completion_tokens}: send one of them",
            )
        if limits and (self.min_tokens or 0) > max(limits):
            raise wrong("min_tokens", f"it is {self.min_tokens} and the answer has {max(limits)} at most: lower it")
        if self.top_logprobs and not self.logprobs:
            raise wrong("top_logprobs", "only allowed with logprobs=true")
        if self.response_format is not None and self.structured_outputs is not None:
            raise wrong("structured_outputs", "there is a response_format as well: send one of them")
        return self

    @model_validator(mode="after")
    def _chosen_tool_exists(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise wrong("tool_choice", "there are no tools to choose from: send tools")
        if isinstance(self.tool_choice, NamedToolChoice) and self.tool_choice.function.name not in names:
            raise wrong(
                "tool_choice", f"no tool is named '{self.tool_choice.function.name}': it is {' or '.join(names)}"
            )
        return self

    def sampling(self) -> Sampling:
        return Sampling(
            max_tokens=self.max_completion_tokens or self.max_tokens,
            min_tokens=self.min_tokens or 0,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k in (-1, 0) else self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            stop=tuple(self.stop or ()),
            ignores_eos=bool(self.ignore_eos),
            seed=self.seed,
            num_answers=self.n or 1,
            num_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            output_format=self._output_format(),
        )

    def _output_format(self) -> OutputFormat | None:
        if self.structured_outputs is not None:
            return self.structured_outputs.output_format()
        if isinstance(self.response_format, JsonObjectFormat):
            return OutputFormat("json_object")
        if isinstance(self.response_format, JsonSchemaFormat):
            return self.response_format.output_format()
        return None

    def tool_use(self) -> ToolUse | None:
        if not self.tools:
            return None
        tools = tuple(one.tool() for one in self.tools)
        is_parallel = self.parallel_tool_calls is not False
        if isinstance(self.tool_choice, NamedToolChoice):
            return ToolUse(tools, "named", self.tool_choice.function.name, is_parallel)
        return ToolUse(tools, self.tool_choice or "auto", None, is_parallel)

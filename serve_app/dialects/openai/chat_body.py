"""The body of `POST /v1/chat/completions`, field by field, and what it asks of an engine.

Shapes follow https://platform.openai.com/docs/api-reference/chat; sampling fields that OpenAI doesn't have carry
vLLM's names. What can't be honoured is a 400 that names the field; nothing is ignored in silence.
"""

import json
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import BeforeValidator, Field, field_validator, model_validator

from serve_app.dialects.formats import MAX_TOOLS, AllowedToolsChoice, FunctionTool, NamedToolChoice, ToolChoice
from serve_app.dialects.sampling_body import MAX_TOP_LOGPROBS, VLLM_NEUTRAL, GenerationBody
from serve_app.exchange.body import Label, LongText, Tolerant, Whole, shortened, wrong
from serve_app.messages import Role, Sampling, ToolCall, ToolChoiceKind, ToolUse
from serve_app.output_format import check_text_depth

MAX_MESSAGES = 10_000
MAX_PARTS = 1000  # of one message
MAX_ALL_PARTS = 10_000  # each goes to another process as an object of its own
MAX_CALLS = 1000  # of one message
MAX_METADATA = 16  # as OpenAI
MAX_TEMPLATE_ARGS = 16
_CHOICES = ("none", "auto", "required")
# Of the chat template's call: what isn't a variable of the template, or is filled by the conversation itself.
_NOT_TEMPLATE_ARGS = frozenset(
    {"messages", "conversation", "tools", "documents", "chat_template", "tokenize", "add_generation_prompt",
     "continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict",
     "return_assistant_tokens_mask", "tokenizer_kwargs", "processor_kwargs", "load_audio_from_video"}
)  # fmt: skip

TemplateArg = bool | int | float | Annotated[str, Field(max_length=1000)] | None


# What carries an image, a sound or a file, here and elsewhere: in another place it would be lost.
_FILES = frozenset(
    {"image_url", "image_urls", "image", "images", "input_image", "input_images", "picture", "pictures",
     "input_audio", "audio_url", "audios", "video_url", "video", "videos", "file", "files", "file_ids", "attachment",
     "attachments", "experimental_attachments"}
)  # fmt: skip
_CARRIED = _FILES | {"text", "refusal"}


class TextPart(Tolerant):
    misplaced: ClassVar[frozenset[str]] = _CARRIED

    type: Literal["text"]
    text: LongText

    @property
    def words(self) -> str:
        return self.text


class RefusalPart(Tolerant):
    """OpenAI's, in an assistant's turn that is sent back: its words."""

    misplaced: ClassVar[frozenset[str]] = _CARRIED

    type: Literal["refusal"]
    refusal: LongText

    @property
    def words(self) -> str:
        return self.refusal


class ImageAddress(Tolerant):
    url: str
    detail: Literal["auto", "low", "high"] | None = None  # OpenAI's cost hint: every model here sees one size


class ImagePart(Tolerant):
    misplaced: ClassVar[frozenset[str]] = _CARRIED

    type: Literal["image_url"]
    image_url: Annotated[
        ImageAddress,
        BeforeValidator(lambda v: {"url": v} if isinstance(v, str) else v, json_schema_input_type=ImageAddress | str),
    ]


Part = Annotated[TextPart | RefusalPart | ImagePart, Field(discriminator="type")]


class CalledFunction(Tolerant):
    name: Label
    arguments: LongText

    @field_validator("arguments")
    @classmethod
    def _not_too_deep(cls, arguments: str) -> str:
        check_text_depth(arguments)  # chat templates and those who guard them go through its values
        return arguments


class AssistantCall(Tolerant):
    """A call that the assistant made in an earlier turn."""

    id: Label
    type: Literal["function"] = "function"
    function: CalledFunction


def _as_parts(content: Any) -> Any:
    if content is None or isinstance(content, list):
        return content or []
    if not isinstance(content, str):
        raise ValueError("Input should be a text or a list of parts")
    return [{"type": "text", "text": content}]


class ChatMessage(Tolerant):
    """A turn; `content` is a string or a list of parts. `developer` is OpenAI's newer word for `system`."""

    misplaced: ClassVar[frozenset[str]] = _FILES
    misplaced_hint: ClassVar[str] = "a message has none beside its content: send it as a part of content"

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "function_call": (),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        list[Part],
        Field(max_length=MAX_PARTS, fail_fast=True),
        BeforeValidator(_as_parts, json_schema_input_type=list[Part] | str | None),
    ] = Field(default_factory=list)
    name: Label | None = None
    tool_calls: Annotated[list[AssistantCall], Field(max_length=MAX_CALLS, fail_fast=True)] | None = None
    tool_call_id: Label | None = None
    refusal: LongText | None = None  # OpenAI's, where the assistant had no other words
    # what a client sends back of an earlier answer; no chat template here reads it
    reasoning: LongText | None = None
    reasoning_content: LongText | None = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise wrong("tool_calls", f"only a message of role assistant has them, and this one is '{self.role}'")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise wrong("tool_call_id", "a message of role tool needs it, and no other has it")
        if not self.content and not self.tool_calls and not self.refusal:
            raise wrong("content", "the message is empty: send a text or parts")
        return self

    @property
    def parts(self) -> list[TextPart | RefusalPart | ImagePart]:
        """Its content, and behind it what it refused."""
        if not self.refusal:
            return self.content
        apart = "\n" if self.content else ""
        return [*self.content, RefusalPart(type="refusal", refusal=apart + self.refusal)]

    @property
    def internal_role(self) -> Role:
        return "system" if self.role == "developer" else self.role

    @property
    def internal_calls(self) -> tuple[ToolCall, ...]:
        return tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in self.tool_calls or ())


class ChatBody(GenerationBody):
    """The body of `POST /v1/chat/completions`. `model` left out means the default chat model."""

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
        "add_generation_prompt": (True,),
        "continue_final_message": (False,),
        "add_special_tokens": (False,),
        "best_of": (1,),
        "echo": (False,),
        "documents": ([],),
        "chat_template": (),
        "mm_processor_kwargs": ({},),
        "media_io_kwargs": ({},),
        "include_reasoning": (True,),
        **VLLM_NEUTRAL,
    }

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)] = Field(min_length=1, max_length=MAX_MESSAGES)
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Annotated[list[FunctionTool], Field(fail_fast=True)] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: dict[Annotated[str, Field(max_length=64)], TemplateArg] | None = Field(
        None, max_length=MAX_TEMPLATE_ARGS
    )
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=MAX_METADATA
    )

    @model_validator(mode="after")
    def _not_too_many_parts(self) -> Self:
        num_parts = sum(len(message.content) for message in self.messages)
        if num_parts > MAX_ALL_PARTS:
            raise wrong("messages", f"they have {num_parts} parts, and a request takes {MAX_ALL_PARTS}: send fewer")
        return self

    @model_validator(mode="after")
    def _not_contradictory(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise wrong("top_logprobs", "only allowed with logprobs=true")
        return self

    @model_validator(mode="after")
    def _chosen_tool_exists(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        if self.tool_choice not in (None, "none", "auto") and not names:
            raise wrong("tool_choice", "there are no tools to choose from: send tools")
        for name in self._chosen_names:
            if name not in names:
                raise wrong("tool_choice", f"no tool is named '{shortened(name)}': it is {' or '.join(names)}")
        return self

    @property
    def _chosen_names(self) -> list[str]:
        """Those of the tools that may be called, where the choice names any. TGI's clients send a bare name."""
        if isinstance(self.tool_choice, AllowedToolsChoice):
            return [tool.function.name for tool in self.tool_choice.allowed_tools.tools]
        if isinstance(self.tool_choice, NamedToolChoice):
            return [self.tool_choice.function.name]
        return [] if self.tool_choice in (None, *_CHOICES) else [self.tool_choice]

    @field_validator("chat_template_kwargs")
    @classmethod
    def _are_variables(cls, args: dict[str, TemplateArg] | None) -> dict[str, TemplateArg] | None:
        for name in args or ():
            if not name.isidentifier() or name in _NOT_TEMPLATE_ARGS:
                raise ValueError(f"'{name}' is no variable that a request may set: leave it out")
        return args

    def template_args(self) -> str:
        """What `GenerationRequest` has under this name."""
        args = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort is not None:
            args["reasoning_effort"] = self.reasoning_effort
        return json.dumps(args) if args else ""

    def sampling(self) -> Sampling:
        return self.generation_sampling((self.top_logprobs or 0) if self.logprobs else None)

    def tool_use(self) -> ToolUse | None:
        if not self.tools:
            return None
        names = self._chosen_names
        choice: ToolChoiceKind = "named" if names else "auto"
        offered = self.tools
        if isinstance(self.tool_choice, AllowedToolsChoice):
            choice = self.tool_choice.allowed_tools.mode
            offered = [tool for tool in self.tools if tool.function.name in names]
        elif not names and self.tool_choice is not None:
            choice = cast(ToolChoiceKind, self.tool_choice)
        # A call that is forced has no other way to be an object: else the model may write any JSON as its arguments.
        tools = tuple(tool.tool(is_forced=choice in ("named", "required")) for tool in offered)
        is_parallel = self.parallel_tool_calls is not False
        return ToolUse(tools, choice, names[0] if choice == "named" else None, is_parallel)

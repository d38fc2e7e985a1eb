"""The body of `POST /v1/completions`: prompts that no chat template goes around.

Shapes follow https://platform.openai.com/docs/api-reference/completions. What can't be honoured is a 400 that names
the field; nothing is ignored in silence.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from serve_app.dialects.sampling_body import MAX_TOP_LOGPROBS, VLLM_NEUTRAL, GenerationBody
from serve_app.exchange.body import Whole, wrong
from serve_app.messages import Sampling

MAX_PROMPTS = 128
MAX_PROMPT_TOKENS = 1_000_000  # as ids: more than any context
_DEFAULT_TOKENS = 16  # OpenAI's

_Text = Annotated[str, Field(min_length=1)]  # with images in it: its texts are bounded once they are found
_Tokens = Annotated[
    list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=MAX_PROMPT_TOKENS, fail_fast=True)
]


def _kind(prompt: Any) -> str:
    """Decided by the first item, so that a mistake in another one is reported at its place."""
    if not isinstance(prompt, list):
        return "text"
    first = prompt[0] if prompt else ""
    return "lists" if isinstance(first, list) else "texts" if isinstance(first, str) else "tokens"


def _is_prompt(prompt: Any) -> Any:
    if not isinstance(prompt, str | list):
        raise ValueError(
            "Input should be a text, a list of texts, the ids of a text's tokens, or a list of such lists"
        )
    return prompt


_Many = Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)
_Prompt = Annotated[
    Annotated[_Text, Tag("text")]
    | Annotated[_Tokens, Tag("tokens")]
    | Annotated[list[_Text], _Many, Tag("texts")]
    | Annotated[list[_Tokens], _Many, Tag("lists")],
    Discriminator(_kind),
    BeforeValidator(_is_prompt),
]


class CompletionBody(GenerationBody):
    """Several prompts are answered side by side; answers are numbered through them, `n` for each."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "suffix": ("",),
        "logit_bias": ({},),
        "add_special_tokens": (True,),
        **VLLM_NEUTRAL,
    }

    prompt: _Prompt
    echo: bool | None = None
    logprobs: Whole | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    best_of: Whole | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _can_be_honoured(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise wrong("best_of", f"it is {self.best_of} and n is {self.n or 1}: only as many as are sent are made")
        if self.echo and self.logprobs is not None:
            raise wrong("echo", "a prompt's own logprobs aren't told: leave out echo or logprobs")
        if self.echo and not all(isinstance(prompt, str) for prompt in self.each_prompt):
            raise wrong("echo", "only a prompt that is a text can be echoed")
        return self

    @property
    def each_prompt(self) -> Sequence[str | list[int]]:
        """One prompt, a text or the ids of its tokens, is a list of one."""
        return [self.prompt] if _kind(self.prompt) in ("text", "tokens") else self.prompt  # type: ignore[list-item, return-value] # decided by _kind

    @property
    def answer_limit(self) -> int | None:
        return super().answer_limit or _DEFAULT_TOKENS

    def sampling(self) -> Sampling:
        return self.generation_sampling(self.logprobs)

    def echoed(self, number: int) -> str:
        """What the answers to this prompt begin with."""
        prompt = self.each_prompt[number]
        return prompt if self.echo and isinstance(prompt, str) else ""

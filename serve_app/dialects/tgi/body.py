"""The bodies of TGI's own routes, field by field, and what they ask of an engine.

Names, defaults and bounds are those of text-generation-inference 3 (its OpenAPI page). TGI reads over fields that it
doesn't know; here they are refused like everywhere in this service, because a misspelt parameter that changes nothing
is worse than an error. `options`, which the hub's hosted API has and its clients send, asks for nothing here.
"""

import random
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from serve_app.dialects.formats import JsonGrammar, RegexGrammar, UsableSchema, tgi_format
from serve_app.dialects.sampling_body import MAX_ANSWERS, MAX_MODEL_CHARACTERS, MAX_TOP_LOGPROBS, Count, StopStrings
from serve_app.exchange.body import Body, Label, LongText, Whole, wrong
from serve_app.messages import OutputFormat, Sampling

DEFAULT_TOKENS = 100


class NamedSchema(Body):
    name: Label | None = None
    strict: bool | None = None  # every schema binds here
    schema_: UsableSchema = Field(alias="schema")


class JsonSchemaGrammar(Body):
    type: Literal["json_schema"]
    value: NamedSchema

    def output_format(self) -> OutputFormat:
        return tgi_format(self.value.schema_)


Grammar = Annotated[JsonGrammar | RegexGrammar | JsonSchemaGrammar, Field(discriminator="type")]


class GenerateParameters(Body):
    """Greedy, unless `do_sample` or what only sampling heeds is given; the model's own settings never count."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {
        "typical_p": (None,),  # no engine here has it
        "watermark": (None, False),
    }

    max_new_tokens: Count | None = Field(None, ge=1)
    do_sample: bool | None = None
    temperature: float | None = Field(None, gt=0, allow_inf_nan=False)
    top_k: Count | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, lt=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stop: StopStrings | None = None
    truncate: Count | None = Field(None, ge=1)
    seed: Whole | None = Field(None, ge=0, lt=2**63)
    best_of: Whole | None = Field(None, ge=1, le=MAX_ANSWERS)
    return_full_text: bool | None = None
    details: bool | None = None
    decoder_input_details: bool | None = None  # as in TGI 3: details whose `prefill` is empty
    top_n_tokens: Whole | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    grammar: Grammar | None = None
    adapter_id: str | None = Field(None, max_length=MAX_MODEL_CHARACTERS)

    @property
    def samples(self) -> bool:
        return bool(self.do_sample) or any(v is not None for v in (self.temperature, self.top_k, self.top_p))

    @property
    def num_answers(self) -> int:
        return self.best_of or 1

    @property
    def has_details(self) -> bool:
        return bool(self.details or self.decoder_input_details)

    def seeded(self) -> Self:
        """With a seed of our own that the details can name, if one answer is sampled and has details."""
        if self.seed is not None or not self.samples or not self.has_details or self.num_answers > 1:
            return self
        return self.model_copy(update={"seed": random.getrandbits(63)})

    @model_validator(mode="after")
    def _can_be_honoured(self) -> Self:
        if self.num_answers > 1 and not self.samples:
            raise wrong("best_of", "greedy answers are all alike: set do_sample, or leave best_of out")
        if self.num_answers > 1 and self.seed is not None:
            raise wrong("seed", "with best_of above 1 there is no one seed: leave it out")
        return self

    def sampling(self, *, has_token_details: bool) -> Sampling:
        """`has_token_details`: the answer has more of each token than its text."""
        needs_logprobs = has_token_details or self.num_answers > 1
        return Sampling(
            max_tokens=self.max_new_tokens or DEFAULT_TOKENS,
            temperature=(self.temperature or 1.0) if self.samples else 0.0,
            top_p=self.top_p or 1.0,
            top_k=self.top_k or 0,
            min_p=0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            stop=tuple(self.stop or ()),
            keeps_stop=True,
            seed=self.seed,
            num_answers=self.num_answers,
            num_logprobs=(self.top_n_tokens or 0) if needs_logprobs else None,
            output_format=self.grammar.output_format() if self.grammar else None,
        )


class HostedOptions(Body):
    """Of the hub's hosted API: here every request waits for its model, and no answer comes from a cache."""

    use_cache: bool | None = None
    wait_for_model: bool | None = None


class GenerateBody(Body):
    """`stream` is for `POST /` and `/invocations`; the other routes have it in their name.

    `model` isn't TGI's, which has one: the hub's older client for Node sends what it was given.
    """

    model: str | None = Field(None, max_length=MAX_MODEL_CHARACTERS)
    inputs: str = Field(min_length=1)  # with images in it: its texts are bounded once they are found
    parameters: Annotated[
        GenerateParameters,
        BeforeValidator(lambda v: {} if v is None else v, json_schema_input_type=GenerateParameters | None),
    ] = GenerateParameters()
    stream: bool | None = None
    options: HostedOptions | None = None

    def seeded(self) -> Self:
        return self.model_copy(update={"parameters": self.parameters.seeded()})


class TokenizeBody(Body):
    """TGI takes here what `/generate` does; of the parameters `truncate` says something of the prompt."""

    model: str | None = Field(None, max_length=MAX_MODEL_CHARACTERS)
    inputs: LongText = Field(min_length=1)
    parameters: GenerateParameters | None = None
    stream: bool | None = None
    options: HostedOptions | None = None

"""What travels between processes: frozen, slotted dataclasses, and nothing that belongs to one library.

A dialect makes a `GenerationRequest`, an engine answers with `Chunk`s; neither knows the other. Images
travel decoded, so that no replica ever parses bytes from a stranger.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

_BYTES_PER_PART = 64  # of a pickled message, image or text, beside what it holds
Role = Literal["system", "user", "assistant", "tool"]
Task = Literal["chat", "caption"]
FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class RgbImage:
    """A decoded image: 8-bit RGB, row by row, `len(rgb) == width * height * 3`."""

    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text in a message."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model called. `arguments` is JSON text as the model wrote it, perhaps not valid."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; text and images in the order in which the client sent them.

    An assistant's turn may have `tool_calls`; a turn of role `tool` answers the one with `tool_call_id`.
    """

    role: Role
    parts: tuple[Text | RgbImage, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def images(self) -> tuple[RgbImage, ...]:
        return tuple(part for part in self.parts if isinstance(part, RgbImage))


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What an answer must look like.

    `spec` is JSON text for `json_schema` (the schema) and `choice` (a list of strings), the pattern for `regex`,
    the grammar's own text, in the notation of GBNF or Lark, and empty for `json_object` (any JSON object).
    """

    kind: Literal["json_schema", "json_object", "regex", "choice", "grammar"]
    spec: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `parameters` is its JSON schema as JSON text."""

    name: str
    parameters: str
    description: str | None = None
    is_strict: bool = False


ToolChoiceKind = Literal["auto", "none", "required", "named"]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The functions on offer. `choice` `named` means that the one called `name` must be called."""

    tools: tuple[Tool, ...]
    choice: ToolChoiceKind = "auto"
    name: str | None = None
    is_parallel: bool = True


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `max_tokens` None means up to the context's end.

    `temperature`, `top_p`, `top_k`, `min_p` and `repetition_penalty` None mean the model's own
    `generation_config`; greedy where that doesn't sample. `num_answers` asks for several answers to the same
    prompt. `num_logprobs` None means no log-probabilities; n means the chosen token's and those of the n likeliest.

    A `seed` draws the same numbers whatever else is batched; the same answer as far as the logits are, which a batch
    of another shape rounds otherwise.
    With `keeps_stop` the stop string that ends an answer is its end; without, it is left out.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    keeps_stop: bool = False
    ignores_eos: bool = False
    seed: int | None = None
    num_answers: int = 1
    num_logprobs: int | None = None
    output_format: OutputFormat | None = None


@dataclass(frozen=True, slots=True)
class RawPrompt:
    """How a prompt is read that no chat template goes around: the parts of the request's one message, as they stand.

    The tokenizer adds its special tokens (one bos, where it has any), as for any text. With `tokens` the prompt is
    these ids and nothing is added; `last_tokens` keeps so many of its end (and the bos).
    """

    tokens: tuple[int, ...] = ()
    last_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer asked of one model. `timeout_s` counts from the moment the replica receives it.

    `waited_s` is how long it waited for its turn before that.

    `raw` None means a conversation, which the model's chat template makes a prompt of; `template_args` is JSON text,
    an object with further variables that the template may read. Nobody reads along where it isn't `is_streamed`: an
    engine may then give few large chunks instead of one a token.
    """

    id: str
    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    timeout_s: float
    tool_use: ToolUse | None = None
    is_streamed: bool = True
    raw: RawPrompt | None = None
    template_args: str = ""
    waited_s: float = 0.0

    @property
    def prompt_field(self) -> str:
        """What clients call the field with the prompt."""
        return "messages" if self.raw is None else "prompt"

    @property
    def images(self) -> tuple[RgbImage, ...]:
        """All images of the conversation, in order."""
        return tuple(image for message in self.messages for image in message.images)

    @property
    def texts(self) -> list[str]:
        """All that a chat template may put into the prompt, in no particular order, but for the ids of calls."""
        texts = [part.text for message in self.messages for part in message.parts if isinstance(part, Text)]
        texts += [text for message in self.messages for c in message.tool_calls for text in (c.name, c.arguments)]
        tools = self.tool_use.tools if self.tool_use else ()
        texts += [text for tool in tools for text in (tool.name, tool.description or "", tool.parameters)]
        return [*texts, self.template_args]

    @property
    def num_bytes(self) -> int:
        """No fewer than it has on its way to another process: its texts count as if all were emoji."""
        output_format = self.sampling.output_format
        texts = [*self.texts, *self.call_ids, *self.sampling.stop, output_format.spec if output_format else ""]
        num_parts = sum(1 + len(message.parts) + len(message.tool_calls) for message in self.messages)
        num_ids = len(self.raw.tokens) if self.raw else 0
        pixels = sum(len(image.rgb) for image in self.images)
        return pixels + 4 * sum(map(len, texts)) + _BYTES_PER_PART * (num_parts + len(texts)) + 5 * num_ids + 1_000

    @property
    def call_ids(self) -> list[str]:
        """Of calls, and of the answers to them."""
        ids = [call.id for message in self.messages for call in message.tool_calls]
        return ids + [message.tool_call_id for message in self.messages if message.tool_call_id]


LEAST_LOGPROB = -9999.0  # OpenAI's, for a token that could not have come: JSON has no infinity


def finite_logprob(logprob: float) -> float:
    """`logprob` as JSON can say it: a grammar's forbidden tokens have -inf, and a broken model's all have NaN."""
    return logprob if logprob > LEAST_LOGPROB else LEAST_LOGPROB


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's natural log-probability under the model, before temperature and penalties.

    `id` is its number in the vocabulary; a special one, as the end of the answer, is no part of the text. `own_bytes`
    stands where the text can't say them: a token may hold a part of a character.
    """

    token: str
    logprob: float
    top: tuple["TokenLogprob", ...] = ()
    id: int = 0
    is_special: bool = False
    own_bytes: bytes | None = None

    @property
    def utf8(self) -> bytes:
        return self.token.encode("utf-8", "replace") if self.own_bytes is None else self.own_bytes


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call: `id` and `name` come once, with the first piece of call number `index`."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)  # not frozen: one is made for every token, and a frozen one takes six times as long
class Chunk:
    """A piece of a streamed answer. Nobody changes one.

    `index` says which of the request's answers it belongs to. `reasoning` is thinking that the engine told
    apart from the answer.

    `num_tokens` counts the tokens generated for this piece (special tokens too), so that their sum is the
    answer's usage. The last chunk of each complete answer, and only that one, has a `finish_reason`, and `stopped_by`
    where a stop string was the reason. Every
    chunk repeats `num_prompt_tokens` (images' tokens included). The first chunk, and only that one, has
    `queue_s`: seconds that the request waited in the engine before the engine worked on it. Where an engine keeps a
    cache of prompts, the first chunk also has `num_cached_tokens`: how many of the prompt's it found there.
    """

    text: str
    num_tokens: int
    num_prompt_tokens: int
    finish_reason: FinishReason | None = None
    queue_s: float | None = None
    index: int = 0
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    num_cached_tokens: int | None = None
    stopped_by: str | None = None


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of a prompt and the characters that it stands for; none for one that the tokenizer added."""

    id: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt's text, its chat template applied, and that text's tokens."""

    text: str
    tokens: tuple[PromptToken, ...]


@dataclass(frozen=True, slots=True)
class ImageEdge:
    """The edge to which a model's own processor resizes every image, in pixels."""

    which: Literal["shortest", "longest"]
    px: int


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a loaded model can do, told by its replica. `context_length` is in tokens.

    `image_limit` is the most images a conversation may have; None where only the context limits them. With
    `image_edge` an image may be sent smaller; None where the model may look at all of it. `num_at_once` is how
    many requests one replica works on at once; None where nobody has told. A source that is a folder or an
    address is told to nobody.
    """

    tasks: tuple[Task, ...]
    engine: str
    family: str
    context_length: int | None
    takes_images: bool
    image_limit: int | None = None
    image_edge: ImageEdge | None = None
    adapters: tuple[str, ...] = ()  # LoRA adapters: names of models that this replica serves besides its own
    num_at_once: int | None = None
    version: str | None = None  # of its files: a hub's commit, an object store's listing; None where nobody knows
    version_note: str | None = None  # why it may be an old one
    hub_id: str | None = None  # of a model that came from a hub
    http: str | None = None  # the fingerprint of the rules by which its own lane serves HTTP
    balancing: str | None = None  # how its requests are spread over its replicas


Put = Callable[[Chunk], None]  # takes an answer's next chunk; called on the event loop, never blocks
Write = Callable[[bytes], None]  # takes an answer's next events, ready to be sent; as `Put`


class Generator(Protocol):
    """Something that generates answers: an engine, or the replica that owns it."""

    async def generate(self, request: GenerationRequest, put: Put) -> None:
        """Hands every chunk to `put` as soon as it is there, and returns after the last.

        Cancelling stops the work within one step. Raises a `ServeAppError`, before the first chunk where the request
        itself is at fault; what `put` raises ends this request alone.
        """
        ...


class EventEncoder(Protocol):
    """Turns one answer's chunks into a dialect's events. Made in the HTTP process, used where the chunks are made."""

    def encode(self, chunk: Chunk) -> bytes:
        """The events that say this chunk; empty where it says nothing."""
        ...

    def end(self) -> bytes:
        """What follows the last chunk."""
        ...


@dataclass(frozen=True, slots=True)
class StreamTotal:
    """What a whole streamed answer came to. `num_writes` counts pieces of events, so that none is lost unnoticed."""

    num_tokens: int
    num_writes: int
    num_prompt_tokens: int = 0
    num_cached_tokens: int | None = None


class ModelHandle(Protocol):
    """How a dialect reaches a model: by way of the router, or in this very process.

    All raise a `ServeAppError`; cancelling stops the engine's work within one step.
    """

    async def answer(self, request: GenerationRequest) -> tuple[Chunk, ...]:
        """The whole answer: one chunk for each of the request's answers."""
        ...

    async def stream(self, request: GenerationRequest, encoder: EventEncoder, write: Write) -> StreamTotal:
        """The answer's events, each to `write` as soon as it is there."""
        ...

    async def tokenize(self, request: GenerationRequest) -> TokenizedPrompt:
        """The prompt that this request would make, which has no images; nothing is generated."""
        ...


def merged(chunks: Iterable[Chunk]) -> tuple[Chunk, ...]:
    """One chunk for each answer, in the answers' order, that says what all of its chunks say."""
    answers: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        answers.setdefault(chunk.index, []).append(chunk)
    return tuple(_joined(answers[index]) for index in sorted(answers))


def _joined(chunks: list[Chunk]) -> Chunk:
    first, last = chunks[0], chunks[-1]
    return Chunk(
        text="".join(chunk.text for chunk in chunks),
        num_tokens=sum(chunk.num_tokens for chunk in chunks),
        num_prompt_tokens=first.num_prompt_tokens,
        finish_reason=last.finish_reason,
        queue_s=first.queue_s,
        index=first.index,
        reasoning="".join(chunk.reasoning for chunk in chunks),
        tool_calls=tuple(call for chunk in chunks for call in chunk.tool_calls),
        logprobs=tuple(logprob for chunk in chunks for logprob in chunk.logprobs),
        num_cached_tokens=first.num_cached_tokens,
        stopped_by=last.stopped_by,
    )

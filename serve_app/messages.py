"""What travels between processes: frozen, slotted dataclasses, and nothing that belongs to one library.

A dialect makes a `GenerationRequest`, an engine answers with `Chunk`s; neither knows the other. Pictures
travel decoded, so that no replica ever parses bytes from a stranger.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

Role = Literal["system", "user", "assistant"]
Task = Literal["chat", "caption"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture: 8-bit RGB, row by row, `len(rgb) == width * height * 3`."""

    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of text in a message."""

    text: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; text and pictures in the order in which the client sent them."""

    role: Role
    parts: tuple[Text | Picture, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return tuple(part for part in self.parts if isinstance(part, Picture))


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `max_tokens` None means up to the context's end.

    `temperature` and `top_p` None mean the model's own `generation_config`; greedy where that doesn't sample.

    The same `seed` gives the same answer to the same request on the same engine, whatever else is batched.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer asked of one model. `timeout_s` counts from the moment the replica receives it."""

    id: str
    model: str
    messages: tuple[Message, ...]
    sampling: Sampling
    timeout_s: float

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures of the conversation, in order."""
        return tuple(picture for message in self.messages for picture in message.pictures)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer.

    `num_tokens` counts the tokens generated for this piece (special tokens too), so that their sum is the
    answer's usage. The last chunk of a complete answer, and only that one, has a `finish_reason`. Every
    chunk repeats `num_prompt_tokens` (pictures' tokens included). The first chunk, and only that one, has
    `queue_s`: seconds that the request waited in the engine before the engine worked on it.
    """

    text: str
    num_tokens: int
    num_prompt_tokens: int
    finish_reason: FinishReason | None = None
    queue_s: float | None = None


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a loaded model can do, told by its replica. `context_length` is in tokens."""

    tasks: tuple[Task, ...]
    engine: str
    family: str
    context_length: int | None
    takes_pictures: bool


class Generator(Protocol):
    """Something that answers requests: an engine, or the router in front of many of them."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        """The answer's chunks as they come. Closing the generator stops the work within one step.

        Raises a `ServeAppError`: before the first chunk where the request itself is at fault.
        """
        ...

"""What the scripted engine says to a request: its script, the commands in the last user's text, its tokens."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast, get_args

from pydantic import Field

from serve_app.errors import InvalidRequest
from serve_app.messages import Chunk, GenerationRequest, Put, RgbImage, Sampling, Text, TokenLogprob
from serve_app.strict import Strict

_COMMANDS = ("echo", "cache", "tokens", "slow", "fail-after", "oom", "hang", "block", "crash", "unhealthy",
             "nonsense")  # fmt: skip
# No word at all; words without an end; a text that isn't Unicode; a text that isn't one; an error that isn't ours.
Nonsense = Literal["nothing", "unfinished", "garbled", "untyped", "foreign"]
_VOCABULARY = 32_000  # ids of tokens are below it


class Script(Strict):
    """What the engine says and how fast; `tokens` is the tokens themselves or their number. A pace of 0 is none."""

    tokens: tuple[str, ...] | int = 16
    tokens_per_s: float = Field(1000.0, ge=0)
    first_token_s: float = Field(0.0, ge=0)
    start_s: float = Field(0.0, ge=0)
    start_error: str | None = None
    capacity: int | None = Field(None, ge=1)
    context_length: int | None = Field(None, ge=2)
    takes_images: bool = True
    image_limit: int | None = Field(None, ge=1)
    cache_size: int = Field(1000, ge=0)


class Plan:
    """One request's answer: its tokens, its delay, and after how many tokens it fails."""

    def __init__(self, script: Script, request: GenerationRequest) -> None:
        self.command, argument = _command(request)
        self.delay_s = float(_number(argument, float)) if self.command == "slow" else script.first_token_s
        self.fails_after = 0 if self.command == "oom" else None
        self.tokens: Sequence[str] | int = script.tokens
        if self.command == "fail-after":
            self.fails_after = int(_number(argument, int))
        if self.command == "tokens":
            self.tokens = int(_number(argument, int))
        elif self.command == "echo":
            self.tokens = _words(argument)
        elif self.command == "nonsense":
            self.nonsense = _nonsense(argument)
        elif request.images:
            self.tokens = _words(", ".join(_described(image) for image in request.images))
        self.failure = f"scripted failure of model '{request.model}' ({self.command}): send another text"

    @property
    def num_tokens(self) -> int:
        return self.tokens if isinstance(self.tokens, int) else len(self.tokens)

    def token(self, index: int) -> str:
        return f"token{index} " if isinstance(self.tokens, int) else self.tokens[index]


def _described(image: RgbImage) -> str:
    """An image's size and mean colour, which tell it from others: `32x16 #ff0000`."""
    num_pixels = image.width * image.height
    mean = "".join(f"{sum(image.rgb[channel::3]) // num_pixels:02x}" for channel in range(3))
    return f"{image.width}x{image.height} #{mean}"


def _command(request: GenerationRequest) -> tuple[str | None, str]:
    """The command in the last user message, and its argument."""
    last = next((m for m in reversed(request.messages) if m.role == "user"), None)
    text = "".join(part.text for part in last.parts if isinstance(part, Text)) if last else ""
    name, _, argument = text.strip().partition(" ")
    if not name.startswith("!"):
        return None, ""
    if name[1:] not in _COMMANDS:
        raise InvalidRequest(f"unknown command '{name}': it is one of !{', !'.join(_COMMANDS)}", "messages")
    return name[1:], argument


def _nonsense(argument: str) -> Nonsense:
    if argument not in get_args(Nonsense):
        raise InvalidRequest(f"!nonsense is followed by one of {', '.join(get_args(Nonsense))}", "messages")
    return cast(Nonsense, argument)


def say_nonsense(which: Nonsense, chunk: Chunk, put: Put) -> None:
    """`chunk` is what an engine might say instead."""
    if which == "garbled":
        put(replace(chunk, text="\ud800 \x00 \udfff"))
    elif which == "untyped":
        put(replace(chunk, text=cast(str, 7)))
    elif which == "unfinished":
        put(replace(chunk, text="and then ", finish_reason=None))
    elif which == "foreign":
        raise _Unspeakable


class _Unspeakable(Exception):
    """No error of ours, and none that can be sent to another process."""

    def __reduce__(self) -> str:
        raise TypeError("not to be pickled")


def _number(argument: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(argument)
    except ValueError as exc:
        raise InvalidRequest("this command wants a number after it", "messages") from exc


def _words(text: str) -> list[str]:
    """The words, each with the space that follows it; together they are the text. Never empty."""
    words = text.split(" ")
    return [f"{word} " for word in words[:-1]] + [words[-1]]


def token_id(text: str) -> int:
    return zlib.crc32(text.strip().encode(errors="replace")) % _VOCABULARY


def logprob(token: str, sampling: Sampling) -> TokenLogprob:
    """A script is certain of each token, and so its likeliest tokens are that one alone."""
    alone = TokenLogprob(token, 0.0, id=token_id(token))
    return replace(alone, top=(alone,)) if sampling.num_logprobs else alone

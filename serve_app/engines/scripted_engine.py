"""Says given tokens at a given pace, and fails on command: for tests of load and of every fault.

The last user message may begin with a command:

| command | effect |
|---|---|
| `!echo TEXT` | answers with TEXT, a token a word |
| `!tokens N` | answers with N tokens |
| `!slow S` | first token after S seconds |
| `!fail-after N` | N tokens, then `EngineFailed` |
| `!oom` | `EngineFailed` before the first token, as an engine out of memory answers |
| `!hang` | never a first token; the loop goes on |
| `!block` | blocks the event loop for good |
| `!crash` | ends the process |
| `!unhealthy` | answers, and fails every health check from then on |

Anything else, or nothing, is answered with `engine_args.num_tokens` tokens. A picture is named in the answer by its
size and mean colour, so that a mix-up shows.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Iterable

from pydantic import Field

from serve_app.config import ModelConfig, Strict
from serve_app.errors import ConfigError, ContextTooLong, DeadlineExceeded, EngineFailed
from serve_app.messages import Chunk, FinishReason, GenerationRequest, Picture, Text


class Script(Strict):
    """The engine's `engine_args`: how long it takes, and how much it runs at once."""

    start_s: float = Field(0.0, ge=0)
    start_error: str | None = None
    first_token_s: float = Field(0.0, ge=0)
    token_s: float = Field(0.005, ge=0)
    num_tokens: int = Field(8, ge=1)
    capacity: int = Field(64, ge=1)
    context_length: int = Field(200_000, ge=1)
    takes_pictures: bool = False


class ScriptedEngine:
    """An engine without a model."""

    def __init__(self, config: ModelConfig) -> None:
        self._script = Script.model_validate(config.engine_args)
        self._places = asyncio.Semaphore(self._script.capacity)
        self._is_healthy = True
        self._is_stopped = False
        self.num_waiting = 0
        self.num_generated = 0  # tests read it to see that cancelled work stopped

    @property
    def context_length(self) -> int:
        return self._script.context_length

    @property
    def takes_pictures(self) -> bool:
        return self._script.takes_pictures

    async def start(self) -> None:
        await asyncio.sleep(self._script.start_s)
        if self._script.start_error is not None:
            raise ConfigError(self._script.start_error)

    async def check_health(self) -> None:
        if not self._is_healthy:
            raise EngineFailed("the script says that this engine is unhealthy")

    async def stop(self) -> None:
        self._is_stopped = True

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
        arrived_at = time.monotonic()
        num_prompt_tokens = sum(len(text.split()) for text in _texts(request)) + 16 * len(request.pictures)
        if num_prompt_tokens + (request.sampling.max_tokens or 1) > self.context_length:
            raise ContextTooLong(
                f"the prompt has {num_prompt_tokens} tokens and asks for {request.sampling.max_tokens or 1} more, "
                f"and the context holds {self.context_length}: shorten it",
                "messages",
            )
        self.num_waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.num_waiting -= 1
        try:
            queue_s = time.monotonic() - arrived_at
            async for chunk in self._play(request, arrived_at, num_prompt_tokens, queue_s):
                yield chunk
        finally:
            self._places.release()

    async def _play(
        self, request: GenerationRequest, arrived_at: float, num_prompt_tokens: int, queue_s: float
    ) -> AsyncGenerator[Chunk, None]:
        command, _, argument = (_texts(request) or [""])[-1].partition(" ")
        await self._before_first(command, argument)
        words = self._words(command, argument, request.pictures)
        limit = request.sampling.max_tokens or len(words)
        for number, word in enumerate(words[:limit]):
            await asyncio.sleep(self._script.token_s)
            if self._is_stopped or (command == "!fail-after" and number == int(argument)):
                raise EngineFailed("the script says that this request fails")
            if time.monotonic() - arrived_at > request.timeout_s:
                raise DeadlineExceeded(f"no whole answer within {request.timeout_s:g} s: ask for fewer tokens")
            self.num_generated += 1
            is_last = number + 1 == min(limit, len(words))
            finish_reason: FinishReason | None = ("length" if limit < len(words) else "stop") if is_last else None
            yield Chunk(word, 1, num_prompt_tokens, finish_reason, queue_s if number == 0 else None)

    async def _before_first(self, command: str, argument: str) -> None:
        await asyncio.sleep(float(argument) if command == "!slow" else self._script.first_token_s)
        if command == "!hang":
            await asyncio.Event().wait()
        elif command == "!block":
            time.sleep(3600)  # noqa: ASYNC251 -- a stuck event loop is what this command is for
        elif command == "!crash":
            os._exit(1)
        elif command == "!oom":
            raise EngineFailed("the engine ran out of memory on this request: ask for fewer tokens or pictures")
        elif command == "!unhealthy":
            self._is_healthy = False

    def _words(self, command: str, argument: str, pictures: Iterable[Picture]) -> list[str]:
        if command == "!echo":
            return [f"{word} " for word in argument.split()] or [""]
        if seen := [_name(picture) for picture in pictures]:
            return [f"{word} " for word in seen]
        count = {"!tokens": 0, "!fail-after": 1}.get(command)
        num_tokens = self._script.num_tokens if count is None else int(argument) + count
        return [f"t{number} " for number in range(num_tokens)]


def _texts(request: GenerationRequest) -> list[str]:
    return [part.text for message in request.messages for part in message.parts if isinstance(part, Text)]


def _name(picture: Picture) -> str:
    """`24x24#ff0000`: the size and the mean of each channel."""
    num_pixels = picture.width * picture.height
    mean = [sum(picture.rgb[channel::3]) // num_pixels for channel in range(3)]
    return f"{picture.width}x{picture.height}#{bytes(mean).hex()}"

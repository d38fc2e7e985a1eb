"""An engine without a model: says given tokens at a given pace, and fails on command. For fault and load tests.

| last user text  | what happens                                                                  |
|-----------------|-------------------------------------------------------------------------------|
| (anything else) | the configured tokens; with images, their size and mean colour              |
| `!echo TEXT`    | says TEXT, a word a token                                                     |
| `!cache`        | says which process this is, and whether it had the image or conversation    |
| `!tokens N`     | says N tokens                                                                 |
| `!slow S`       | waits S seconds before the first token                                        |
| `!fail-after N` | raises `EngineFailed` after N tokens                                          |
| `!oom`          | raises `EngineFailed` before the first token                                  |
| `!hang`         | one token, then never another                                                 |
| `!block`        | blocks the event loop for ever                                                |
| `!crash`        | ends the process at once                                                      |
| `!unhealthy`    | answers, and `check_health` fails from now on                                 |
| `!nonsense`     | does what no engine may: followed by one of `Nonsense` (script.py)            |

`engine_args` are the fields of `Script`.
"""

import asyncio
import os
import re
import sys
import time
from contextlib import suppress

from cachetools import LRUCache
from pydantic import ValidationError

from serve_app.cache_keys import cache_keys
from serve_app.checkpoints.load_progress import Report, to_nobody
from serve_app.config.applications import Family, ModelConfig
from serve_app.engines.context import answer_limit, deadline_error
from serve_app.engines.scripted.script import Plan, Script, logprob, say_nonsense, token_id
from serve_app.engines.text.prompt_tokens import refuse_images
from serve_app.errors import ConfigError, EngineFailed, ModelNotReady
from serve_app.messages import (
    Chunk,
    FinishReason,
    GenerationRequest,
    ImageEdge,
    PromptToken,
    Put,
    Text,
    TokenizedPrompt,
)
from serve_app.strict import first_sentence


class ScriptedEngine:
    """Plays a model. `num_generated` counts all tokens ever made, so that stopped work can be seen to stop."""

    image_edge: ImageEdge | None = None
    family: Family = "generic"

    def __init__(self, config: ModelConfig) -> None:
        try:
            self._script = Script.model_validate(config.engine_args)
        except ValidationError as exc:
            raise ConfigError(f"engine_args: {first_sentence(exc)}") from exc
        limits = [n for n in (self._script.context_length, config.max_context_tokens) if n]
        self.context_length: int | None = min(limits, default=None)
        self.takes_images = self._script.takes_images
        self.image_limit = self._script.image_limit
        self.num_at_once = self._script.capacity or config.max_batch_size
        self.num_generated = self.num_waiting = self.num_waiting_tokens = 0
        self._num_running = 0
        self._places = asyncio.Semaphore(self.num_at_once)
        self._stopped = asyncio.Event()
        self._is_started = self._is_unhealthy = False
        self._cache: LRUCache[bytes, None] = LRUCache(self._script.cache_size)

    @property
    def kv_cache_use(self) -> float | None:
        """Each place is an equal share, full while a request is in it."""
        return self._num_running / self.num_at_once

    async def start(self, report: Report = to_nobody) -> None:
        """Take `start_s`, then raise `start_error` as a `ConfigError` if there is one."""
        report("loading the script")
        await asyncio.sleep(self._script.start_s)
        if self._script.start_error:
            raise ConfigError(self._script.start_error)
        self._stopped.clear()
        self._is_started = True

    async def check_health(self) -> None:
        if self._is_unhealthy or not self._is_started:
            raise EngineFailed("the scripted engine is unhealthy: restart its replica")

    async def stop(self) -> None:
        self._is_started = False
        self._stopped.set()

    async def generate(self, request: GenerationRequest, put: Put) -> None:
        """The scripted answer. Cancelling stops the work at once."""
        if not self._is_started:
            raise ModelNotReady(f"model '{request.model}' isn't loaded: try again in a moment")
        received_s = time.monotonic()
        plan = Plan(self._script, request)
        if plan.command == "cache":
            plan.tokens = [f"{os.getpid()} {'hit' if self._was_cached(request) else 'miss'}"]
        num_prompt_tokens = self._num_prompt_tokens(request)
        max_tokens = request.sampling.max_tokens
        if self.context_length:
            max_tokens = answer_limit(request, num_prompt_tokens, self.context_length)
        try:
            async with asyncio.timeout(request.timeout_s):
                await self._take_place(num_prompt_tokens)
                self._num_running += 1
                try:
                    first = Chunk("", 1, num_prompt_tokens, "stop", queue_s=time.monotonic() - received_s)
                    if plan.command == "nonsense":
                        say_nonsense(plan.nonsense, first, put)
                    else:
                        await self._say(plan, request, first, max_tokens or plan.num_tokens, put)
                finally:
                    self._num_running -= 1
                    self._places.release()
        except TimeoutError as exc:
            raise deadline_error(request) from exc

    async def tokenize(self, request: GenerationRequest) -> TokenizedPrompt:
        """A token a word, with the space before it; each has the id that it has in answers."""
        refuse_images(request)
        text = "\n".join(part.text for m in request.messages for part in m.parts if isinstance(part, Text))
        words = re.finditer(r"\s*\S+", text)
        return TokenizedPrompt(text, tuple(PromptToken(token_id(w[0]), w.start(), w.end()) for w in words))

    async def _say(self, plan: Plan, request: GenerationRequest, first: Chunk, max_tokens: int, put: Put) -> None:
        """Put the answer at the script's pace, a chunk for each token. `first` has what the first chunk says."""
        self._misbehave(plan)
        num_tokens = min(max_tokens, plan.num_tokens)
        finish: FinishReason = "length" if max_tokens < plan.num_tokens else "stop"
        interval_s = 1 / self._script.tokens_per_s if self._script.tokens_per_s else 0
        due_s = time.monotonic() + plan.delay_s
        for index in range(num_tokens):
            due_s += interval_s
            await self._wait_until(due_s, request)
            if plan.fails_after == index:
                raise EngineFailed(plan.failure)
            self.num_generated += 1
            text = plan.token(index)
            logprobs = () if request.sampling.num_logprobs is None else (logprob(text, request.sampling),)
            is_last = index == num_tokens - 1
            queue_s = None if index else first.queue_s
            put(Chunk(text, 1, first.num_prompt_tokens, finish if is_last else None, queue_s, logprobs=logprobs))
            if plan.command == "hang":
                await self._wait_until(float("inf"), request)

    def _was_cached(self, request: GenerationRequest) -> bool:
        """Whether a part of this request was here before; from now on it is."""
        keys = cache_keys(request)
        is_known = any(key in self._cache for key in keys)
        if self._cache.maxsize:
            self._cache.update(dict.fromkeys(keys))
        return is_known

    def _num_prompt_tokens(self, request: GenerationRequest) -> int:
        parts = [part for message in request.messages for part in message.parts]
        num_tokens = sum(len(part.text.split()) if isinstance(part, Text) else 16 for part in parts)
        if request.raw:
            num_tokens = min(len(request.raw.tokens) or num_tokens, request.raw.last_tokens or sys.maxsize)
        return num_tokens

    async def _take_place(self, num_prompt_tokens: int) -> None:
        self.num_waiting += 1
        self.num_waiting_tokens += num_prompt_tokens
        try:
            await self._places.acquire()
        finally:
            self.num_waiting -= 1
            self.num_waiting_tokens -= num_prompt_tokens

    def _misbehave(self, plan: Plan) -> None:
        """What breaks more than the one request."""
        if plan.command == "crash":
            os._exit(1)
        if plan.command == "unhealthy":
            self._is_unhealthy = True
        while plan.command == "block":
            time.sleep(1)  # the command is to block the loop

    async def _wait_until(self, due_s: float, request: GenerationRequest) -> None:
        wait_s = due_s - time.monotonic()
        if wait_s <= 0:
            await asyncio.sleep(0)  # others run even where no pace is set
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._stopped.wait()
        if self._stopped.is_set():
            raise EngineFailed(f"model '{request.model}' is shutting down: send the request again")

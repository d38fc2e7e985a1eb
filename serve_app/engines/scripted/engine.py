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
from collections import OrderedDict

from pydantic import ValidationError

from serve_app.cache_keys import cache_keys
from serve_app.checkpoints.load_progress import Report, to_nobody
from serve_app.config.applications import Family, ModelConfig
from serve_app.engines.context import answer_too_long, prompt_too_long
from serve_app.engines.scripted.script import Plan, Script, logprob, say_nonsense, token_id
from serve_app.engines.text.prompt_tokens import refuse_images
from serve_app.errors import ConfigError, DeadlineExceeded, EngineFailed, ModelNotReady
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


class _Cache:
    """Plays an engine's cache of images and conversations: the last so many keys of requests."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def had(self, request: GenerationRequest) -> bool:
        """Whether a part of this request was here before; from now on it is."""
        keys = cache_keys(request)
        is_known = any(key in self._keys for key in keys)
        for key in keys:
            self._keys[key] = None
            self._keys.move_to_end(key)
        while len(self._keys) > self._size:
            self._keys.popitem(last=False)
        return is_known


class ScriptedEngine:
    """Plays a model. `num_generated` counts all tokens ever made, so that stopped work can be seen to stop."""

    def __init__(self, config: ModelConfig) -> None:
        try:
            self.script = Script.model_validate(config.engine_args)
        except ValidationError as exc:
            raise ConfigError(f"engine_args: {first_sentence(exc)}") from exc
        limits = [n for n in (self.script.context_length, config.max_context_tokens) if n]
        self._context_length = min(limits, default=None)
        self._capacity = self.script.capacity or config.max_batch_size
        self._places = asyncio.Semaphore(self._capacity)
        self._running: set[asyncio.Event] = set()
        self._cache = _Cache(self.script.cache_size)
        self._is_started = self._is_unhealthy = False
        self.num_generated = 0
        self.num_waiting = self.num_waiting_tokens = 0

    @property
    def kv_cache_use(self) -> float | None:
        """Each place as a share of the whole, as if every request filled its place."""
        return len(self._running) / self._capacity

    @property
    def context_length(self) -> int | None:
        return self._context_length

    @property
    def takes_images(self) -> bool:
        return self.script.takes_images

    @property
    def image_limit(self) -> int | None:
        return self.script.image_limit

    @property
    def image_edge(self) -> ImageEdge | None:
        return None

    @property
    def family(self) -> Family:
        return "generic"

    @property
    def num_at_once(self) -> int:
        return self._capacity

    @property
    def num_running(self) -> int:
        return len(self._running)

    async def start(self, report: Report = to_nobody) -> None:
        """Take `start_s`, then raise `start_error` as a `ConfigError` if there is one."""
        report("loading the script")
        await asyncio.sleep(self.script.start_s)
        if self.script.start_error:
            raise ConfigError(self.script.start_error)
        self._is_started = True

    async def check_health(self) -> None:
        if self._is_unhealthy or not self._is_started:
            raise EngineFailed("the scripted engine is unhealthy: restart its replica")

    async def stop(self) -> None:
        self._is_started = False
        for stopped in self._running:
            stopped.set()

    async def generate(self, request: GenerationRequest, put: Put) -> None:
        """The scripted answer. Cancelling stops the work at once."""
        if not self._is_started:
            raise ModelNotReady(f"model '{request.model}' isn't loaded: try again in a moment")
        received_s = time.monotonic()
        plan = Plan(self.script, request)
        if plan.command == "cache":
            plan.tokens = [f"{os.getpid()} {'hit' if self._cache.had(request) else 'miss'}"]
        num_prompt, num_tokens, finish = self._budget(plan, request)
        stopped = asyncio.Event()
        try:
            async with asyncio.timeout(request.timeout_s):
                await self._take_place(num_prompt)
        except TimeoutError as exc:
            raise _deadline_error(request) from exc
        self._running.add(stopped)
        queue_s: float | None = time.monotonic() - received_s
        pace = _Pace(stopped, received_s + request.timeout_s, request)
        try:
            await self._misbehave(plan, pace)
            if plan.command == "nonsense":
                say_nonsense(plan.nonsense, Chunk("", 1, num_prompt, "stop", queue_s), put)
                return
            for index in range(num_tokens):
                await pace.wait(plan.delay_s if index == 0 else 0, self.script.tokens_per_s)
                if plan.fails_after == index:
                    raise EngineFailed(plan.breaks)
                self.num_generated += 1
                is_last = index == num_tokens - 1
                text = plan.token(index)
                logprobs = () if request.sampling.num_logprobs is None else (logprob(text, request.sampling),)
                put(Chunk(text, 1, num_prompt, finish if is_last else None, queue_s, logprobs=logprobs))
                queue_s = None
                if plan.command == "hang":
                    await pace.wait(float("inf"), 0)
        finally:
            self._running.discard(stopped)
            self._places.release()

    async def tokenize(self, request: GenerationRequest) -> TokenizedPrompt:
        """A token a word, with the space before it; each has the id that it has in answers."""
        refuse_images(request)
        text = "\n".join(part.text for m in request.messages for part in m.parts if isinstance(part, Text))
        words = re.finditer(r"\s*\S+", text)
        return TokenizedPrompt(text, tuple(PromptToken(token_id(w[0]), w.start(), w.end()) for w in words))

    async def _take_place(self, num_prompt_tokens: int) -> None:
        self.num_waiting += 1
        self.num_waiting_tokens += num_prompt_tokens
        try:
            await self._places.acquire()
        finally:
            self.num_waiting -= 1
            self.num_waiting_tokens -= num_prompt_tokens

    async def _misbehave(self, plan: "Plan", pace: "_Pace") -> None:
        """What breaks more than the one request."""
        if plan.command == "crash":
            os._exit(1)
        if plan.command == "unhealthy":
            self._is_unhealthy = True
        while plan.command == "block":
            time.sleep(1)  # noqa: ASYNC251 - blocking the loop is what was asked for

    def _budget(self, plan: "Plan", request: GenerationRequest) -> tuple[int, int, FinishReason]:
        """Prompt tokens, answer tokens and how the answer ends. Raises `ContextTooLong`."""
        parts = [part for message in request.messages for part in message.parts]
        num_prompt = sum(len(part.text.split()) if isinstance(part, Text) else 16 for part in parts)
        if request.raw:
            num_prompt = min(len(request.raw.tokens) or num_prompt, request.raw.last_tokens or sys.maxsize)
        max_tokens = request.sampling.max_tokens
        context_length = self.context_length
        if context_length and num_prompt + (max_tokens or 1) > context_length:
            if num_prompt < context_length:
                raise answer_too_long(request, num_prompt, max_tokens or 1, context_length)
            raise prompt_too_long(request, f"{num_prompt} tokens", context_length)
        room = max_tokens or (context_length - num_prompt if context_length else plan.num_tokens)
        return num_prompt, min(room, plan.num_tokens), "length" if room < plan.num_tokens else "stop"


class _Pace:
    """Waits between tokens; ends early with an error when the engine stops or the deadline passes."""

    def __init__(self, stopped: asyncio.Event, deadline_s: float, request: GenerationRequest) -> None:
        self._stopped = stopped
        self._deadline_s = deadline_s
        self._request = request
        self._due_s = time.monotonic()

    async def wait(self, delay_s: float, tokens_per_s: float) -> None:
        self._due_s += delay_s + (1 / tokens_per_s if tokens_per_s else 0)
        wait_s = min(self._due_s, self._deadline_s) - time.monotonic()
        if wait_s <= 0:
            await asyncio.sleep(0)  # others run even where no pace is set
        else:
            try:
                async with asyncio.timeout(wait_s):
                    await self._stopped.wait()
            except TimeoutError:
                pass
        if self._stopped.is_set():
            raise EngineFailed(f"model '{self._request.model}' is shutting down: send the request again")
        # The event loop's clock may be a moment early: what is due after the deadline is late in any case.
        if self._due_s > self._deadline_s or time.monotonic() >= self._deadline_s:
            raise _deadline_error(self._request)


def _deadline_error(request: GenerationRequest) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the answer of model '{request.model}' wasn't complete after {request.timeout_s:g} s: ask for fewer tokens"
    )

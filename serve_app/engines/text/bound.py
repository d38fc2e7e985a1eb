"""Refuses prompts with too much text before they are tokenized, so that a long text costs only its sender.

A text has at least as many tokens as its characters divided by those of the tokenizer's longest token. A long text
within that bound is counted piece by piece, in a thread and without Python's lock, until it is certainly too long.
Knows no engine.
"""

import asyncio
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from serve_app.engines.context import prompt_too_long
from serve_app.messages import GenerationRequest, Text

_SHORT_CHARACTERS = 32_768  # tokenized in some 10 ms: not counted before
_PIECE_CHARACTERS = 65_536
_MARGIN = 2  # the pieces of a text may have more tokens than the whole
# Where text is normalized: NFKC composes at most four characters into one.
_NORMALIZED_CHARACTERS = 4
_DEFAULT_CONTEXT = 131_072  # tokens, for models that state no context length
# How chat templates print the ids of calls, in which some clients keep long signatures.
_PRINTED_IDS = re.compile(r"\bid\b|tool_call_id|\b(tool_calls?|messages?)\s*\|\s*(tojson|string)\b")
_LEAST_COUNTABLE = 65_536  # tokens that a text may have that is only tokenized


class TextBound:
    """Holds the texts of a model's requests to what its context can take. For one event loop."""

    def __init__(self, tokenizer: Any, context_length: int | None, chat_template: str | None = None) -> None:
        """`tokenizer` may be used by other threads at the same time as long as they only read it.

        `chat_template` stands in for the tokenizer's own.
        """
        template = chat_template or getattr(tokenizer, "chat_template", None)
        self._prints_ids = not isinstance(template, str) or _PRINTED_IDS.search(template) is not None
        self._tokenizer = tokenizer
        self._context_length = context_length or _DEFAULT_CONTEXT
        self._token_characters = _longest_token(tokenizer)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lengths")

    async def fitted(self, request: GenerationRequest) -> GenerationRequest:
        """The request, its text no longer than needed where only its end is kept. Raises `ContextTooLong`."""
        last_tokens = request.raw.last_tokens if request.raw else None
        if last_tokens and not request.images:
            return await self._cut(request, min(last_tokens, self._context_length + 1))
        if request.raw and len(request.raw.tokens) > self._context_length:
            raise prompt_too_long(request, f"{len(request.raw.tokens):,} tokens", self._context_length)
        await self._check(request, self._context_length)
        return request

    async def check_countable(self, request: GenerationRequest) -> None:
        """For a text that is only tokenized. Raises `ContextTooLong`."""
        await self._check(request, max(self._context_length, _LEAST_COUNTABLE // _MARGIN))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _check(self, request: GenerationRequest, max_tokens: int) -> None:
        texts = request.texts + (request.call_ids if self._prints_ids else [])
        num_characters = sum(map(len, texts))
        if num_characters > max_tokens * self._token_characters:
            raise prompt_too_long(request, f"{num_characters:,} characters", self._context_length)
        if num_characters <= _SHORT_CHARACTERS:
            return
        whole = "".join(texts)
        starts = range(0, len(whole), _PIECE_CHARACTERS)
        if await self._start_of_excess(whole, starts, _MARGIN * max_tokens) is not None:
            raise prompt_too_long(request, f"more than {max_tokens:,} tokens", self._context_length)

    async def _cut(self, request: GenerationRequest, last_tokens: int) -> GenerationRequest:
        whole = "".join(request.texts)
        if len(whole) <= _SHORT_CHARACTERS:
            return request
        starts = range(len(whole) - _PIECE_CHARACTERS, -_PIECE_CHARACTERS, -_PIECE_CHARACTERS)
        start = await self._start_of_excess(whole, starts, _MARGIN * last_tokens)
        if start is None:
            return request
        return replace(request, messages=(replace(request.messages[0], parts=(Text(whole[start:]),)),))

    async def _start_of_excess(self, text: str, starts: Iterable[int], num_tokens: int) -> int | None:
        """The start of the piece with which the count exceeds `num_tokens`; None if none does."""
        loop, num_counted = asyncio.get_running_loop(), 0
        for start in starts:
            piece = text[max(0, start) : start + _PIECE_CHARACTERS]
            num_in_piece = await loop.run_in_executor(self._thread, _num_tokens, self._tokenizer, piece)
            # at both ends, a long token may be cut into its characters
            num_counted += max(0, num_in_piece - 2 * self._token_characters)
            if num_counted > num_tokens:
                return max(0, start)
        return None


def _longest_token(tokenizer: Any) -> int:
    """The most characters of a text that one token stands for.

    A byte-level token has a character for each byte, so at least as many. Characters that a tokenizer drops or
    doesn't know are counted like the others.
    """
    longest = max(map(len, tokenizer.get_vocab()), default=1)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    is_unchanged = backend is not None and backend.normalizer is None
    return longest if is_unchanged else longest * _NORMALIZED_CHARACTERS


def _num_tokens(tokenizer: Any, piece: str) -> int:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return len(tokenizer.encode(piece, add_special_tokens=False))
    (encoded,) = backend.encode_batch_fast([piece], add_special_tokens=False)  # `encode` would hold Python's lock
    return len(encoded)

"""The tokens that an answer cost, as OpenAI's usage object."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.messages import Chunk


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer or several. `num_cached_tokens` is None if no engine keeps a cache of prompts."""

    num_prompt_tokens: int
    num_tokens: int
    num_cached_tokens: int | None = None

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> "Usage":
        """Of one request; `chunks` are all of it, several answers' too."""
        first = chunks[0]
        return cls(first.num_prompt_tokens, sum(chunk.num_tokens for chunk in chunks), first.num_cached_tokens)

    @classmethod
    def total(cls, usages: Iterable["Usage"]) -> "Usage":
        usages = list(usages)
        cached = [usage.num_cached_tokens for usage in usages if usage.num_cached_tokens is not None]
        return cls(
            sum(usage.num_prompt_tokens for usage in usages),
            sum(usage.num_tokens for usage in usages),
            sum(cached) if cached else None,
        )

    def as_json(self) -> dict[str, Any]:
        details = {"prompt_tokens_details": {"cached_tokens": self.num_cached_tokens}}
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_tokens,
            **(details if self.num_cached_tokens is not None else {}),
        }


class RunningUsage:
    """What a streamed answer has cost so far. Sent at the end if `is_sent`, in every event if `is_continuous`."""

    def __init__(self, is_sent: bool, is_continuous: bool) -> None:
        self.is_sent = is_sent
        self.is_continuous = is_continuous
        self._first: Chunk | None = None
        self._num_tokens = 0

    def begin(self, chunk: Chunk) -> None:
        """The first chunk has the prompt's tokens."""
        self._first = self._first or chunk

    def count(self, chunk: Chunk) -> None:
        self.begin(chunk)
        self._num_tokens += chunk.num_tokens

    @property
    def total(self) -> Usage | None:
        """None before the first chunk."""
        if (first := self._first) is None:
            return None
        return Usage(first.num_prompt_tokens, self._num_tokens, first.num_cached_tokens)

    @property
    def field(self) -> dict[str, Any]:
        """An event's usage field: null, as OpenAI sends it, if the usage comes at the end."""
        if not self.is_sent:
            return {}
        return {"usage": self.total.as_json() if self.is_continuous and self.total else None}

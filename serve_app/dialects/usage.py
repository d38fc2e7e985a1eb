"""What an answer cost, as OpenAI's usage object tells it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.messages import Chunk


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer or several. `num_cached_tokens` is None where no engine told how much it had in cache."""

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
    """What a streamed answer has cost so far. Told at its end where it `is_told`, and perhaps in every event."""

    def __init__(self, is_told: bool, is_told_along: bool) -> None:
        self.is_told = is_told
        self.is_told_along = is_told_along
        self._first: Chunk | None = None
        self._num_tokens = 0

    def begin(self, chunk: Chunk) -> None:
        """What is told before the first chunk's tokens are counted: the prompt's."""
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
        """What an event has of it: as OpenAI does, a null where the usage comes at the end."""
        if not self.is_told:
            return {}
        return {"usage": self.total.as_json() if self.is_told_along and self.total else None}

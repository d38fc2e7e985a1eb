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

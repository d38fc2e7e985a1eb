"""Chunks as OpenAI's completions: one `text_completion`, or events that are such as they come.

Shapes follow https://platform.openai.com/docs/api-reference/completions.
"""

from collections.abc import Sequence
from typing import Any

from serve_app.dialects.openai.chat_answer import FINGERPRINT
from serve_app.dialects.usage import RunningUsage, Usage
from serve_app.exchange.connection import event_bytes
from serve_app.exchange.exchange import Exchange
from serve_app.messages import Chunk, TokenLogprob


def completion_frame(exchange: Exchange, model: str) -> dict[str, Any]:
    """What every answer and event of one request has."""
    return {
        "id": f"cmpl-{exchange.id}",
        "object": "text_completion",
        "created": exchange.created_s,
        "model": model,
        "system_fingerprint": FINGERPRINT,
    }


def choices_json(chunks: Sequence[Chunk], first_index: int, echo: str) -> list[dict[str, Any]]:
    """The answers to one prompt, each chunk one of them, complete."""
    return [
        {
            "index": first_index + chunk.index,
            "text": echo + chunk.text,
            "logprobs": _logprobs_json(chunk.logprobs, 0) if chunk.logprobs else None,
            "finish_reason": chunk.finish_reason,
        }
        for chunk in chunks
    ]


def _logprobs_json(logprobs: Sequence[TokenLogprob], num_characters_before: int) -> dict[str, Any]:
    """Lists side by side; the likeliest tokens of a place are a mapping, which the chosen one is always in."""
    offsets, at = [], num_characters_before
    for token in logprobs:
        offsets.append(at)
        at += 0 if token.is_special else sum(byte & 0xC0 != 0x80 for byte in token.utf8)
    return {
        "tokens": [_spelled(token) for token in logprobs],
        "token_logprobs": [token.logprob for token in logprobs],
        "top_logprobs": [
            {_spelled(top): top.logprob for top in token.top} | {_spelled(token): token.logprob} for token in logprobs
        ],
        "text_offset": offsets,
    }


def _spelled(token: TokenLogprob) -> str:
    """The token; a part of a character by its bytes, as OpenAI's service writes it."""
    if token.own_bytes is None or "\ufffd" not in token.token:
        return token.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.own_bytes)


class CompletionEvents:
    """The events of one prompt's streamed answers: an `EventEncoder`."""

    def __init__(self, frame: dict[str, Any], first_index: int, echo: str, usage: RunningUsage) -> None:
        self._frame = frame
        self._first_index = first_index
        self._echo = echo
        self._usage = usage
        self._num_characters: dict[int, int] = {}  # of each answer, so far

    def encode(self, chunk: Chunk) -> bytes:
        self._usage.count(chunk)
        text = chunk.text if chunk.index in self._num_characters else self._echo + chunk.text
        before = self._num_characters.setdefault(chunk.index, 0)
        self._num_characters[chunk.index] += len(text)
        if not (text or chunk.logprobs or chunk.finish_reason):
            return b""
        choice = {
            "index": self._first_index + chunk.index,
            "text": text,
            "logprobs": _logprobs_json(chunk.logprobs, before) if chunk.logprobs else None,
            "finish_reason": chunk.finish_reason,
        }
        return event_bytes(self._frame | {"choices": [choice]} | self._usage.field)

    def end(self) -> bytes:
        """Nothing: other prompts of the request may not have ended."""
        return b""


def usage_event(frame: dict[str, Any], usage: Usage) -> bytes:
    return event_bytes(frame | {"choices": [], "usage": usage.as_json()})

"""Chunks as TGI's answers and events.

Shapes follow text-generation-inference 3's OpenAPI page.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.dialects.tgi.dialect import TGI
from serve_app.exchange.connection import event_bytes
from serve_app.messages import Chunk, TokenLogprob

_FARTHEST = 8  # characters that earlier tokens may have added before a token whose own text is found
# Fields that engines call otherwise.
TGI_NAMES = {
    "max_tokens": "max_new_tokens",
    "response_format": "grammar",
    "prompt": "inputs",
    "messages": "inputs",
}


@dataclass(frozen=True, slots=True)
class AnswerStyle:
    """How much the answer says. `full_text` goes before the generated text."""

    full_text: str = ""
    has_details: bool = False
    seed: int | None = None


def answer_json(chunks: Sequence[Chunk], style: AnswerStyle) -> dict[str, Any]:
    """The best of the answers, each a chunk: the one with the highest mean logprob, as in TGI."""
    best, *others = sorted(chunks, key=_mean_logprob, reverse=True) if len(chunks) > 1 else chunks
    answer: dict[str, Any] = {"generated_text": style.full_text + best.text}
    if style.has_details:
        answer["details"] = _details(best, style)
        if others:
            answer["details"]["best_of_sequences"] = [
                {"generated_text": style.full_text + other.text} | _details(other, style) for other in others
            ]
    return answer


def _mean_logprob(chunk: Chunk) -> float:
    return sum(token.logprob for token in chunk.logprobs) / max(1, len(chunk.logprobs))


def _details(chunk: Chunk, style: AnswerStyle) -> dict[str, Any]:
    top_tokens = [_top_json(token) for token in chunk.logprobs]
    return {
        "finish_reason": _finish_reason(chunk),
        "generated_tokens": chunk.num_tokens,
        "seed": style.seed,
        "prefill": [],
        "tokens": [_token_json(token, text) for token, text in _with_texts(chunk)],
        **({"top_tokens": top_tokens} if any(top_tokens) else {}),
    }


def _finish_reason(chunk: Chunk) -> str:
    if chunk.finish_reason == "length":
        return "length"
    return "eos_token" if chunk.stopped_by is None else "stop_sequence"


def _token_json(token: TokenLogprob, text: str) -> dict[str, Any]:
    return {
        "id": token.id,
        "text": text,
        "logprob": token.logprob,
        "special": token.is_special and text == token.token,
    }


def _top_json(token: TokenLogprob) -> list[dict[str, Any]]:
    return [_token_json(top, top.token) for top in token.top]


class TokenEvents:
    """The events of one streamed answer, an `EventEncoder`: one event a token, the last one with the whole text.

    The texts of all tokens that aren't special are the generated text.
    """

    def __init__(self, style: AnswerStyle) -> None:
        self._style = style
        self._texts: list[str] = [style.full_text]
        self._num_tokens = self._num_events = 0

    def encode(self, chunk: Chunk) -> bytes:
        self._texts.append(chunk.text)
        self._num_tokens += chunk.num_tokens
        tokens = list(_with_texts(chunk))
        events = []
        for number, (token, text) in enumerate(tokens, 1):
            self._num_events += 1
            is_last = chunk.finish_reason is not None and number == len(tokens)
            events.append(event_bytes(self._event(token, text, chunk if is_last else None), TGI.event_start))
        return b"".join(events)

    def end(self) -> bytes:
        """Nothing: the last token's event says that it is the last."""
        return b""

    def _event(self, token: TokenLogprob, text: str, last: Chunk | None) -> dict[str, Any]:
        top_tokens = _top_json(token)
        return {
            "index": self._num_events,
            "token": _token_json(token, text),
            **({"top_tokens": top_tokens} if top_tokens else {}),
            "generated_text": None if last is None else "".join(self._texts),
            "details": None if last is None or not self._style.has_details else self._stream_details(last),
        }

    def _stream_details(self, last: Chunk) -> dict[str, Any]:
        return {
            "finish_reason": _finish_reason(last),
            "generated_tokens": self._num_tokens,
            "seed": self._style.seed,
            "input_length": last.num_prompt_tokens,
        }


def _with_texts(chunk: Chunk) -> Iterator[tuple[TokenLogprob, str]]:
    """The chunk's tokens, and what each adds to the text; a special one only shows its name.

    All texts but those are the chunk's. A token alone may decode otherwise: a part of a character adds nothing, and
    the last part all of it; a space in front is missing.
    """
    # A chunk without a token ends an answer whose last token had no text, or none left to show.
    tokens = chunk.logprobs or (TokenLogprob("", 0.0, is_special=not chunk.text),)
    texts = [token.token if token.is_special else "" for token in tokens]
    at, waiting = 0, None
    for number, token in enumerate(tokens):
        if token.is_special:
            continue
        start = chunk.text.find(token.token, at, at + len(token.token) + _FARTHEST) if token.token else -1
        if start < 0:
            waiting = number
            continue
        owner = number if waiting is None else waiting
        texts[owner] = chunk.text[at:start]
        texts[number] += token.token
        at, waiting = start + len(token.token), None
    if rest := chunk.text[at:]:
        # Text that was held back may come with the special token that ends the answer: that isn't shown as one then.
        owner = max((number for number, token in enumerate(tokens) if not token.is_special), default=len(tokens) - 1)
        texts[owner] = ("" if tokens[owner].is_special else texts[owner]) + rest
    yield from zip(tokens, texts, strict=True)

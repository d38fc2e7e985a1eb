"""Chunks as OpenAI's chat answers: one `chat.completion`, or `chat.completion.chunk` events as they come.

Events are encoded where the chunks are made, once; whatever stands between there and the client passes bytes on.

Shapes follow https://platform.openai.com/docs/api-reference/chat; `reasoning` beside `content` is vLLM's.
"""

from collections.abc import Sequence
from json.encoder import encode_basestring  # json.dumps of a bare string, at a tenth of its price
from typing import Any

from serve_app import __version__
from serve_app.dialects.usage import RunningUsage, Usage
from serve_app.exchange.connection import DONE_EVENT, event_bytes
from serve_app.exchange.exchange import Exchange
from serve_app.messages import Chunk, TokenLogprob, ToolCallDelta

FINGERPRINT = f"serve_app-{__version__}"  # OpenAI's `system_fingerprint`: what answers
_LAST_DELTA = {"content": ""}  # not OpenAI's empty one: as vLLM and TGI send it, for clients that join every content


def completion_json(exchange: Exchange, model: str, chunks: Sequence[Chunk]) -> dict[str, Any]:
    """The whole answer; each chunk is one choice of it, complete."""
    return {
        "id": f"chatcmpl-{exchange.id}",
        "object": "chat.completion",
        "created": exchange.created_s,
        "model": model,
        "system_fingerprint": FINGERPRINT,  # the hub's older client for Node takes no answer without one
        "choices": [_choice(chunk) for chunk in chunks],
        "usage": Usage.of(chunks).as_json(),
    }


def _choice(chunk: Chunk) -> dict[str, Any]:
    calls = _whole_calls(chunk.tool_calls)
    content = chunk.text or (None if calls else "")
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if chunk.reasoning:
        message["reasoning"] = chunk.reasoning
    if calls:
        message["tool_calls"] = calls
    return {
        "index": chunk.index,
        "message": message,
        "logprobs": _logprobs_json(_of_content(chunk)) if chunk.logprobs else None,
        "finish_reason": chunk.finish_reason,
    }


def _whole_calls(deltas: Sequence[ToolCallDelta]) -> list[dict[str, Any]]:
    """The calls that these pieces make up, in their order."""
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        call = calls.setdefault(
            delta.index, {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = delta.id or call["id"]
        call["function"]["name"] = delta.name or call["function"]["name"]
        call["function"]["arguments"] += delta.arguments
    return [calls[index] for index in sorted(calls)]


def _of_content(chunk: Chunk) -> Sequence[TokenLogprob]:
    """All but the token that ended the answer, which is no part of it."""
    is_ended = chunk.finish_reason not in (None, "length") and chunk.stopped_by is None
    return chunk.logprobs[:-1] if is_ended and chunk.logprobs and chunk.logprobs[-1].is_special else chunk.logprobs


def _logprobs_json(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        _logprob_json(token) | {"top_logprobs": [_logprob_json(top) for top in token.top]} for token in logprobs
    ]
    return {"content": content, "refusal": None}


def _logprob_json(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.token, "logprob": token.logprob, "bytes": list(token.utf8)}


class ChatEvents:
    """The events of one streamed chat answer: an `EventEncoder`."""

    def __init__(self, answer_id: str, created_s: int, model: str, usage: RunningUsage) -> None:
        self._frame = {
            "id": answer_id,
            "object": "chat.completion.chunk",
            "created": created_s,
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }
        self._usage = usage
        self._around: dict[int, tuple[bytes, bytes]] = {}  # by answer: what stands before and after a piece of text

    def encode(self, chunk: Chunk) -> bytes:
        """An answer's first chunk is preceded by its role, its last one followed by how it finished."""
        head = b""
        if chunk.index not in self._around:
            head = self._begin(chunk)
        self._usage.count(chunk)
        before, after = self._around[chunk.index]
        if not (chunk.reasoning or chunk.tool_calls or chunk.logprobs or self._usage.is_continuous):
            text = chunk.text
            events = before + encode_basestring(text).encode("utf-8", "replace") + after if text else b""
        else:
            content = _of_content(chunk)
            logprobs = _logprobs_json(content) if content else None
            delta = _delta(chunk)
            events = self._event(chunk.index, delta, logprobs) if delta or logprobs else b""
        if chunk.finish_reason is not None:
            return head + events + self._event(chunk.index, _LAST_DELTA, None, chunk.finish_reason)
        return head + events

    def end(self) -> bytes:
        """The usage where it was asked for, and `[DONE]`."""
        if not (self._usage.is_sent and self._usage.total):
            return DONE_EVENT
        return event_bytes(self._frame | {"choices": [], "usage": self._usage.total.as_json()}) + DONE_EVENT

    def _begin(self, chunk: Chunk) -> bytes:
        self._usage.begin(chunk)
        event = self._event(chunk.index, {"role": "assistant", "content": ""})
        text_event = self._event(chunk.index, {"content": ""})
        before, after = text_event.split(b'{"content":""}')
        self._around[chunk.index] = before + b'{"content":', b"}" + after
        return event

    def _event(
        self, index: int, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return event_bytes(self._frame | {"choices": [choice]} | self._usage.field)


def _delta(chunk: Chunk) -> dict[str, Any]:
    delta: dict[str, Any] = {}
    if chunk.text:
        delta["content"] = chunk.text
    if chunk.reasoning:
        delta["reasoning"] = chunk.reasoning
    if chunk.tool_calls:
        delta["tool_calls"] = [_call_delta(call) for call in chunk.tool_calls]
    return delta


def _call_delta(call: ToolCallDelta) -> dict[str, Any]:
    function = {"name": call.name} if call.name is not None else {}
    head = {"id": call.id, "type": "function"} if call.id is not None else {}
    return {"index": call.index, **head, "function": {**function, "arguments": call.arguments}}

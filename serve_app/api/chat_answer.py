"""Chunks as OpenAI's chat answers: one `chat.completion`, or `chat.completion.chunk` events as they come.

Shapes follow https://platform.openai.com/docs/api-reference/chat; `reasoning` beside `content` is vLLM's.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from serve_app.api.exchange import DONE_EVENT, Exchange, event_bytes
from serve_app.api.usage import Usage
from serve_app.messages import Chunk, TokenLogprob, ToolCallDelta


def completion_json(exchange: Exchange, model: str, chunks: Sequence[Chunk]) -> dict[str, Any]:
    """The whole answer, every choice of it."""
    indices = sorted({chunk.index for chunk in chunks})
    return {
        "id": f"chatcmpl-{exchange.id}",
        "object": "chat.completion",
        "created": exchange.created_s,
        "model": model,
        "choices": [_choice(index, [chunk for chunk in chunks if chunk.index == index]) for index in indices],
        "usage": Usage.of(chunks).as_json(),
    }


def _choice(index: int, chunks: Sequence[Chunk]) -> dict[str, Any]:
    calls = _whole_calls([delta for chunk in chunks for delta in chunk.tool_calls])
    text = "".join(chunk.text for chunk in chunks)
    reasoning = "".join(chunk.reasoning for chunk in chunks)
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
    if reasoning:
        message["reasoning"] = reasoning
    if calls:
        message["tool_calls"] = calls
    logprobs = [one for chunk in chunks for one in chunk.logprobs]
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs_json(logprobs) if logprobs else None,
        "finish_reason": chunks[-1].finish_reason,
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


def _logprobs_json(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [_logprob_json(one) | {"top_logprobs": [_logprob_json(top) for top in one.top]} for one in logprobs]
    return {"content": content, "refusal": None}


def _logprob_json(one: TokenLogprob) -> dict[str, Any]:
    return {"token": one.token, "logprob": one.logprob, "bytes": list(one.token.encode("utf-8", "replace"))}


async def chat_events(
    exchange: Exchange, model: str, first: Chunk, rest: AsyncGenerator[Chunk, None], include_usage: bool
) -> AsyncIterator[bytes]:
    """The answer as server-sent events, `[DONE]` at its end."""
    frame = {
        "id": f"chatcmpl-{exchange.id}",
        "object": "chat.completion.chunk",
        "created": exchange.created_s,
        "model": model,
    }
    no_usage: dict[str, Any] = {"usage": None} if include_usage else {}

    def event(index: int, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return event_bytes(frame | {"choices": [choice]} | no_usage)

    num_tokens = 0
    begun: set[int] = set()
    async for chunk in _chain(first, rest):
        num_tokens += chunk.num_tokens
        if chunk.index not in begun:
            begun.add(chunk.index)
            yield event(chunk.index, {"role": "assistant", "content": ""})
        delta = _delta(chunk)
        logprobs = _logprobs_json(chunk.logprobs) if chunk.logprobs else None
        if delta or logprobs:
            yield event(chunk.index, delta, logprobs)
        if chunk.finish_reason is not None:
            yield event(chunk.index, {}, None, chunk.finish_reason)
    if include_usage:
        usage = Usage(first.num_prompt_tokens, num_tokens, first.num_cached_tokens)
        yield event_bytes(frame | {"choices": [], "usage": usage.as_json()})
    yield DONE_EVENT


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


async def _chain(first: Chunk, rest: AsyncGenerator[Chunk, None]) -> AsyncIterator[Chunk]:
    yield first
    async for chunk in rest:
        yield chunk

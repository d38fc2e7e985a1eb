"""Translates a request into vLLM's chat request, and vLLM's outputs into chunks.

vLLM's own request class carries sampling, formats and tools, so that its checks and defaults apply. Images
go in as decoded pixels; vLLM never fetches anything.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from PIL import Image
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionNamedToolChoiceParam,
    ChatCompletionRequest,
    ChatCompletionToolsParam,
)
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.parser import Parser
from vllm.sampling_params import StructuredOutputsParams

from serve_app.errors import EngineFailed
from serve_app.messages import (
    Chunk,
    FinishReason,
    GenerationRequest,
    Message,
    OutputFormat,
    RgbImage,
    Sampling,
    Text,
    TokenLogprob,
    ToolCallDelta,
    ToolUse,
    finite_logprob,
)

# For checkpoints without a chat template: the plain texts, a line each.
PLAIN_TEMPLATE = (
    "{%- for message in messages -%}{{ message['content'] }}{% if not loop.last %}{{ '\n' }}{% endif %}{%- endfor -%}"
)
ReadBytes = Callable[[int], bytes | None]  # a token's bytes, if they aren't a whole text
_ANY_OBJECT = json.dumps({"type": "object"})
_EMPTY_REQUEST = ChatCompletionRequest.model_validate({"messages": []})  # a copy costs a third of a new one


def chat_request(request: GenerationRequest, *, is_plain: bool = False, **more: Any) -> ChatCompletionRequest:
    """The request as vLLM's.

    `is_plain`: the prompt has no chat template, and the tokenizer adds its special tokens. `more`: further fields of
    vLLM's request.

    vLLM's own validation is skipped: it allows fewer stop strings, no images in most roles, and turns a list of
    images into a one-shot iterator. The dialects have checked every field.
    """
    fields: dict[str, Any] = {
        "messages": [_message(message) for message in request.messages],
        "stop_token_ids": [],  # lists of its own: vLLM may add to them
        "bad_words": [],
        "stream": True,
        "request_id": request.id,
        "add_special_tokens": is_plain,
        **more,
        **_sampling(request.sampling),
        **({} if "structured_outputs" in more else _output_format(request.sampling.output_format)),
        **_tools(request.tool_use),
        **({"chat_template_kwargs": json.loads(request.template_args)} if request.template_args else {}),
    }
    return _EMPTY_REQUEST.model_copy(update=fields)


def _message(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": [_part(part) for part in message.parts]}
    if all(isinstance(part, Text) for part in message.parts):
        fields["content"] = "".join(part.text for part in message.parts if isinstance(part, Text))
    if message.tool_calls:
        fields["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
        fields["content"] = fields["content"] or None
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _part(part: Text | RgbImage) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image_pil", "image_pil": Image.frombytes("RGB", (part.width, part.height), part.rgb)}


def _sampling(sampling: Sampling) -> dict[str, Any]:
    """All but `max_tokens`, which depends on the prompt's length."""
    return {
        "n": sampling.num_answers,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "min_tokens": sampling.min_tokens,
        "stop": list(sampling.stop),
        "include_stop_str_in_output": sampling.keeps_stop,
        "ignore_eos": sampling.ignores_eos,
        "seed": sampling.seed,
        "logprobs": sampling.num_logprobs is not None,
        "top_logprobs": sampling.num_logprobs or 0,
    }


def _output_format(output_format: OutputFormat | None) -> dict[str, Any]:
    if output_format is None:
        return {}
    kind, spec = output_format.kind, output_format.spec
    if kind == "choice":
        params = StructuredOutputsParams(choice=json.loads(spec))
    elif kind in ("json_schema", "json_object"):
        params = StructuredOutputsParams(json=spec or _ANY_OBJECT)
    else:  # a regex or a grammar
        params = StructuredOutputsParams(**{kind: spec})
    return {"structured_outputs": params}


def _tools(tool_use: ToolUse | None) -> dict[str, Any]:
    if tool_use is None or not tool_use.tools:
        return {}
    functions = [
        {
            "name": tool.name,
            "parameters": json.loads(tool.parameters),
            **({"description": tool.description} if tool.description is not None else {}),
            **({"strict": True} if tool.is_strict else {}),
        }
        for tool in tool_use.tools
    ]
    choice: Any = tool_use.choice
    if choice == "named":
        choice = ChatCompletionNamedToolChoiceParam.model_validate({"function": {"name": tool_use.name}})
    return {
        "tools": [ChatCompletionToolsParam.model_validate({"function": function}) for function in functions],
        "tool_choice": choice,
        "parallel_tool_calls": tool_use.is_parallel,
    }


class Answers:
    """Turns one request's outputs into chunks. `parsers` has an entry for each answer; None where it needs none."""

    def __init__(
        self,
        request: ChatCompletionRequest,
        parsers: list[Parser | None],
        num_prompt_tokens: int,
        special_ids: frozenset[int],
        token_bytes: ReadBytes = lambda token: None,
    ) -> None:
        self._request = request
        self._parsers = parsers
        self._num_prompt_tokens = num_prompt_tokens
        self._special_ids = special_ids
        self._token_bytes = token_bytes
        self._called = [False] * len(parsers)
        self._is_first = True

    def chunks(self, output: RequestOutput) -> Iterator[Chunk]:
        """The chunks of one step. Raises `EngineFailed` where vLLM gave the request up."""
        for answer in output.outputs:
            if answer.token_ids or answer.finish_reason is not None:
                yield self._chunk(answer, output)

    def aborted(self, output: RequestOutput) -> Chunk:
        """A chunk without text that counts the tokens which vLLM had collected when the request was aborted."""
        return Chunk("", sum(len(answer.token_ids) for answer in output.outputs), self._num_prompt_tokens)

    def _chunk(self, answer: CompletionOutput, output: RequestOutput) -> Chunk:
        text, reasoning, calls = self._parsed(answer, output)
        is_first, self._is_first = self._is_first, False
        return Chunk(
            text=text,
            num_tokens=len(answer.token_ids),
            num_prompt_tokens=self._num_prompt_tokens,
            finish_reason=self._finish_reason(answer),
            queue_s=_queue_s(output) if is_first else None,
            index=answer.index,
            reasoning=reasoning,
            tool_calls=calls,
            logprobs=self._logprobs(answer, self._request.top_logprobs or 0),
            num_cached_tokens=output.num_cached_tokens if is_first else None,
            stopped_by=answer.stop_reason if isinstance(answer.stop_reason, str) else None,
        )

    def _parsed(self, answer: CompletionOutput, output: RequestOutput) -> tuple[str, str, tuple[ToolCallDelta, ...]]:
        """Text, reasoning and tool calls."""
        parser = self._parsers[answer.index]
        if parser is None:
            return answer.text, "", ()
        delta = parser.parse_delta(
            delta_text=answer.text,
            delta_token_ids=list(answer.token_ids),
            request=self._request,
            prompt_token_ids=output.prompt_token_ids,
            finished=answer.finish_reason is not None,
        )
        if delta is None:
            return "", "", ()
        calls = tuple(
            ToolCallDelta(
                index=call.index,
                arguments=(call.function.arguments if call.function else None) or "",
                id=call.id,
                name=call.function.name if call.function else None,
            )
            for call in delta.tool_calls
            if self._request.parallel_tool_calls is not False or call.index == 0
        )
        self._called[answer.index] |= bool(calls)
        return delta.content or "", delta.reasoning or "", calls

    def _logprobs(self, answer: CompletionOutput, num_top: int) -> tuple[TokenLogprob, ...]:
        if not answer.logprobs:
            return ()
        steps = zip(answer.token_ids, answer.logprobs, strict=True)
        return tuple(self._token_logprob(token, candidates, num_top) for token, candidates in steps)

    def _token_logprob(self, token: int, candidates: dict[int, Logprob], num_top: int) -> TokenLogprob:
        ranked = sorted(candidates, key=lambda candidate: candidates[candidate].rank or 0)
        logprobs = {
            candidate: TokenLogprob(
                value.decoded_token or "",
                finite_logprob(value.logprob),
                id=candidate,
                is_special=candidate in self._special_ids,
                own_bytes=self._token_bytes(candidate),
            )
            for candidate, value in candidates.items()
        }
        return replace(logprobs[token], top=tuple(logprobs[candidate] for candidate in ranked[:num_top]))

    def _finish_reason(self, answer: CompletionOutput) -> FinishReason | None:
        """As in OpenAI's API: `tool_calls` where the model chose to call, `stop` where the request named the tool."""
        if answer.finish_reason is None:
            return None
        if answer.finish_reason in ("abort", "error"):
            raise EngineFailed("vLLM gave this request up: send it again; the replica's log says why")
        is_free = self._request.tool_choice in ("auto", "required")
        if answer.finish_reason == "stop" and self._called[answer.index] and is_free:
            return "tool_calls"
        return "length" if answer.finish_reason == "length" else "stop"


def _queue_s(output: RequestOutput) -> float:
    """Seconds between the engine core's receiving the request and its first step; 0 where vLLM keeps no count."""
    stats = output.metrics
    if stats is None or not stats.scheduled_ts:
        return 0.0
    return float(max(0.0, stats.scheduled_ts - stats.queued_ts))

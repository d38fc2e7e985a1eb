"""Between this service's words and vLLM's: a request as vLLM's chat request, vLLM's outputs as chunks.

vLLM's own request class carries sampling, formats and tools, so that its checks and defaults apply. Images
go in as decoded pixels; vLLM never fetches anything.
"""

import json
from collections.abc import Callable
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
    Put,
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
ReadBytes = Callable[[int], bytes | None]  # a token's own bytes, where its text can't say them
_ANY_OBJECT = json.dumps({"type": "object"})
_NOTHING_ASKED = ChatCompletionRequest.model_validate({"messages": []})  # a copy costs a third of a new one


def chat_request(request: GenerationRequest, *, is_plain: bool = False, **more: Any) -> ChatCompletionRequest:
    """The same request in vLLM's words.

    `is_plain`: prompts without a chat template, to which the tokenizer adds its special tokens. `more`: fields of
    vLLM's that this service has no word for.

    It is made without vLLM's checks, which are those of its HTTP server: they know fewer stop strings, no images in
    most roles, and make a one-shot iterator of a list of images. A dialect has checked every field.
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
    return _NOTHING_ASKED.model_copy(update=fields)


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


def _output_format(wanted: OutputFormat | None) -> dict[str, Any]:
    if wanted is None:
        return {}
    if wanted.kind in ("json_schema", "json_object"):
        return {"structured_outputs": StructuredOutputsParams(json=wanted.spec or _ANY_OBJECT)}
    if wanted.kind == "regex":
        return {"structured_outputs": StructuredOutputsParams(regex=wanted.spec)}
    if wanted.kind == "grammar":
        return {"structured_outputs": StructuredOutputsParams(grammar=wanted.spec)}
    return {"structured_outputs": StructuredOutputsParams(choice=json.loads(wanted.spec))}


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
    """One request's outputs on their way to chunks; `parsers` holds one for each answer where the model has any."""

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

    def put(self, output: RequestOutput, put: Put) -> None:
        """Hands on the chunks of one step. Raises `EngineFailed` where vLLM gave the request up."""
        for one in output.outputs:
            if one.token_ids or one.finish_reason is not None:
                put(self._chunk(one, output))

    def kept_back(self, output: RequestOutput) -> Chunk:
        """The tokens, without their text, that vLLM gives out when a request is aborted: they were generated."""
        return Chunk("", sum(len(one.token_ids) for one in output.outputs), self._num_prompt_tokens)

    def _chunk(self, one: CompletionOutput, output: RequestOutput) -> Chunk:
        text, reasoning, calls = self._parsed(one, output)
        is_first, self._is_first = self._is_first, False
        return Chunk(
            text=text,
            num_tokens=len(one.token_ids),
            num_prompt_tokens=self._num_prompt_tokens,
            finish_reason=self._finish_reason(one),
            queue_s=_queue_s(output) if is_first else None,
            index=one.index,
            reasoning=reasoning,
            tool_calls=calls,
            logprobs=self._logprobs(one, self._request.top_logprobs or 0),
            num_cached_tokens=output.num_cached_tokens if is_first else None,
            stopped_by=one.stop_reason if isinstance(one.stop_reason, str) else None,
        )

    def _parsed(self, one: CompletionOutput, output: RequestOutput) -> tuple[str, str, tuple[ToolCallDelta, ...]]:
        """Text, reasoning and calls, told apart by the model's parser."""
        parser = self._parsers[one.index]
        if parser is None:
            return one.text, "", ()
        delta = parser.parse_delta(
            delta_text=one.text,
            delta_token_ids=list(one.token_ids),
            request=self._request,
            prompt_token_ids=output.prompt_token_ids,
            finished=one.finish_reason is not None,
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
        self._called[one.index] |= bool(calls)
        return delta.content or "", delta.reasoning or "", calls

    def _logprobs(self, one: CompletionOutput, num_top: int) -> tuple[TokenLogprob, ...]:
        if not one.logprobs:
            return ()
        places = zip(one.token_ids, one.logprobs, strict=True)
        return tuple(self._token_logprob(token, found, num_top) for token, found in places)

    def _token_logprob(self, token: int, found: dict[int, Logprob], num_top: int) -> TokenLogprob:
        ranked = sorted(found, key=lambda one: found[one].rank or 0)
        told = {
            one: TokenLogprob(
                value.decoded_token or "",
                finite_logprob(value.logprob),
                id=one,
                is_special=one in self._special_ids,
                own_bytes=self._token_bytes(one),
            )
            for one, value in found.items()
        }
        return replace(told[token], top=tuple(told[one] for one in ranked[:num_top]))

    def _finish_reason(self, one: CompletionOutput) -> FinishReason | None:
        """OpenAI's: `tool_calls` where the model chose to call, `stop` where it was told to (named)."""
        if one.finish_reason is None:
            return None
        if one.finish_reason in ("abort", "error"):
            raise EngineFailed("vLLM gave this request up: send it again; the replica's log says why")
        is_free = self._request.tool_choice in ("auto", "required")
        if one.finish_reason == "stop" and self._called[one.index] and is_free:
            return "tool_calls"
        return "length" if one.finish_reason == "length" else "stop"


def _queue_s(output: RequestOutput) -> float:
    """Seconds between the engine core's receiving the request and its first step; 0 where vLLM keeps no count."""
    stats = output.metrics
    if stats is None or not stats.scheduled_ts:
        return 0.0
    return float(max(0.0, stats.scheduled_ts - stats.queued_ts))

"""The shapes of this service's answers and events, as JSON Schema for the OpenAPI document.

What makes an answer stands in the dialects; a test holds every answer that they give in it against these.
"""

from typing import Any

from serve_app.errors import concrete_errors

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_NUMBER: Schema = {"type": "number"}
_TRUE_OR_FALSE: Schema = {"type": "boolean"}
_ANYTHING: Schema = {}
_INDEX = _COUNT


def reference(name: str) -> str:
    return f"#/components/schemas/{name}"


def _ref(name: str) -> Schema:
    return {"$ref": reference(name)}


def _or_null(schema: Schema) -> Schema:
    if isinstance(schema.get("type"), str) and not schema.keys() & {"enum", "const"}:
        return schema | {"type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def _many(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def _word(*words: str) -> Schema:
    return {"type": "string", "enum": list(words)} if len(words) > 1 else {"type": "string", "const": words[0]}


def _object(required: dict[str, Schema], **optional: Schema) -> Schema:
    """An object with these fields; those that are `optional` may be absent."""
    return {"type": "object", "properties": required | optional, "required": list(required)}


_FINISH = _word("stop", "length", "tool_calls")
_TOP_LOGPROB = {"token": _TEXT, "logprob": _NUMBER, "bytes": _or_null(_many(_COUNT))}
_CHAT_LOGPROBS = _object(
    {
        "content": _many(_object({**_TOP_LOGPROB, "top_logprobs": _many(_object(_TOP_LOGPROB))})),
        "refusal": {"type": "null"},
    }
)
_LISTED_LOGPROBS = _object(
    {
        "tokens": _many(_TEXT),
        "token_logprobs": _many(_NUMBER),
        "top_logprobs": _many({"type": "object", "additionalProperties": _NUMBER}),
        "text_offset": _many(_COUNT),
    }
)
_FRAME = {"id": _TEXT, "created": _COUNT, "model": _TEXT, "system_fingerprint": _TEXT}
_CALL = _object(
    {"id": _TEXT, "type": _word("function"), "function": _object({"name": _TEXT, "arguments": _TEXT})}
)  # fmt: skip
_CALL_DELTA = _object(
    {"index": _INDEX, "function": _object({"arguments": _TEXT}, name=_TEXT)}, id=_TEXT, type=_word("function")
)
_CHAT_CHOICE = _object(
    {
        "index": _INDEX,
        "message": _object(
            {"role": _word("assistant"), "content": _or_null(_TEXT), "refusal": {"type": "null"}},
            reasoning=_TEXT,
            tool_calls=_many(_CALL),
        ),
        "logprobs": _or_null(_CHAT_LOGPROBS),
        "finish_reason": _FINISH,
    }
)
_CHAT_CHUNK_CHOICE = _object(
    {
        "index": _INDEX,
        "delta": _object(
            {}, role=_word("assistant"), content=_TEXT, reasoning=_TEXT, tool_calls=_many(_CALL_DELTA)
        ),
        "logprobs": _or_null(_CHAT_LOGPROBS),
        "finish_reason": _or_null(_FINISH),
    }
)  # fmt: skip


def _completion_choice(finish: Schema) -> Schema:
    return _object({"index": _INDEX, "text": _TEXT, "logprobs": _or_null(_LISTED_LOGPROBS), "finish_reason": finish})


_SAID = {"caption": _TEXT, "finish_reason": _FINISH}
_SAID_PERHAPS = {
    "regions": _many(
        _object({"label": _TEXT}, box=_many(_NUMBER), quad=_many(_many(_NUMBER)), polygons=_many(_ANYTHING),
                span=_many(_COUNT))
    ),
    "tags": _many(_TEXT),
    "json": _ANYTHING,
}  # fmt: skip
_ENTRY = _object(
    {
        "id": _TEXT,
        "object": _word("model"),
        "created": _COUNT,
        "owned_by": _TEXT,
        "state": _word("pending", "loading", "ready", "scaled_to_zero", "unhealthy", "failed"),
        "tasks": _or_null(_many(_word("chat", "caption"))),
        "engine": _or_null(_TEXT),
        "context_length": _or_null(_COUNT),
        "root": _TEXT,
        "max_model_len": _or_null(_COUNT),
        "image_limit": _or_null(_COUNT),
        "replicas": _COUNT,
        "version": _or_null(_TEXT),
    },
    version_note=_TEXT,
    parent=_TEXT,
    weights={"type": "object", "additionalProperties": _NUMBER},
    reason=_TEXT,
)
_STATE = _object({"state": _ENTRY["properties"]["state"]}, reason=_TEXT)
_STYLES = _object(
    {
        "object": _word("caption.styles"),
        "model": _TEXT,
        "family": _TEXT,
        "system": _or_null(_TEXT),
        "styles": _many(_object(dict.fromkeys(("name", "label", "prompt"), _TEXT) | {
            "prompt_in_words": _or_null(_TEXT), "prompt_at_length": _or_null(_TEXT), "lists_tags": _TRUE_OR_FALSE})),
        "lengths": _many(_TEXT),
        "options": _many(_object({"name": _TEXT, "text": _TEXT})),
        "tasks": _many(_object({"name": _TEXT, "token": _TEXT, "prompt": _TEXT, "needs": _ANYTHING,
                                "has_regions": _TRUE_OR_FALSE})),
        "languages": _many(_TEXT),
    }
)  # fmt: skip
_TGI_TOKEN = _object({"id": _COUNT, "text": _TEXT, "logprob": _NUMBER, "special": _TRUE_OR_FALSE})
_TGI_FINISH = _word("length", "eos_token", "stop_sequence")
_TGI_DETAILS = {
    "finish_reason": _TGI_FINISH,
    "generated_tokens": _COUNT,
    "seed": _or_null(_COUNT),
    "prefill": {"type": "array", "maxItems": 0},
    "tokens": _many(_TGI_TOKEN),
}
_TOP_TOKENS = _many(_many(_TGI_TOKEN))
_TOKENS = _many(_object({"id": _COUNT, "text": _TEXT, "start": _COUNT, "stop": _COUNT}))

ANSWERS: dict[str, Schema] = {
    "Usage": _object(
        {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT},
        prompt_tokens_details=_object({"cached_tokens": _COUNT}),
    ),
    "ChatCompletion": _object(
        {**_FRAME, "object": _word("chat.completion"), "choices": _many(_CHAT_CHOICE), "usage": _ref("Usage")}
    ),
    "ChatCompletionChunk": _object(
        {**_FRAME, "object": _word("chat.completion.chunk"), "choices": _many(_CHAT_CHUNK_CHOICE)},
        usage=_or_null(_ref("Usage")),
    ),
    "Completion": _object(
        {
            **_FRAME,
            "object": _word("text_completion"),
            "choices": _many(_completion_choice(_FINISH)),
            "usage": _ref("Usage"),
        }
    ),
    "CompletionChunk": _object(
        {**_FRAME, "object": _word("text_completion"), "choices": _many(_completion_choice(_or_null(_FINISH)))},
        usage=_or_null(_ref("Usage")),
    ),
    "Caption": _object(
        {
            "object": _word("caption"),
            "index": _INDEX,
            **_SAID,
            "prompt": _TEXT,
            "usage": _ref("Usage"),
            "timing": _object({"image_s": _NUMBER}, queue_s=_NUMBER, total_s=_NUMBER),
        },
        **_SAID_PERHAPS,
        system=_TEXT,
        captions=_many(_object(_SAID, **_SAID_PERHAPS)),
        guard=_object(
            {
                "passed": _TRUE_OR_FALSE,
                "findings": _many(_TEXT),
                "checks": _many(_TEXT),
                "chosen": _COUNT,
                "attempts": _many({"type": "object"}),
            },
            stopped=_TEXT,
        ),
    ),
    "CaptionFailure": _object({"object": _word("error"), "index": _INDEX, "error": _ref("ErrorFields")}),
    "CaptionChunk": _object(
        {"object": _word("caption.chunk"), "index": _INDEX, "delta": _TEXT}, choice=_INDEX
    ),
    "CaptionList": _object(
        {
            "id": _TEXT,
            "object": _word("list"),
            "created": _COUNT,
            "model": _TEXT,
            "data": _many({"anyOf": [_ref("Caption"), _ref("CaptionFailure")]}),
            "usage": _ref("Usage"),
        }
    ),
    "CaptionStyles": _STYLES,
    "Model": _ENTRY,
    "ModelList": _object({"object": _word("list"), "data": _many(_ref("Model"))}, refused_config=_TEXT),
    "CancelledRequest": _object({"id": _TEXT, "object": _word("request"), "cancelled": _TRUE_OR_FALSE}),
    "Health": _object({"status": _word("ok")}),
    "Ready": _object(
        {"ready": _TRUE_OR_FALSE},
        models={"type": "object", "additionalProperties": _STATE},
        refused_config=_TEXT,
    ),
    "Generation": _object(
        {"generated_text": _TEXT},
        details=_object(
            _TGI_DETAILS,
            top_tokens=_TOP_TOKENS,
            best_of_sequences=_many(_object({"generated_text": _TEXT, **_TGI_DETAILS}, top_tokens=_TOP_TOKENS)),
        ),
    ),
    "Generations": _many(_ref("Generation")),
    "GenerationEvent": _object(
        {
            "index": _INDEX,
            "token": _TGI_TOKEN,
            "generated_text": _or_null(_TEXT),
            "details": _or_null(
                _object(
                    {
                        "finish_reason": _TGI_FINISH,
                        "generated_tokens": _COUNT,
                        "seed": _or_null(_COUNT),
                        "input_length": _COUNT,
                    }
                )
            ),
        },
        top_tokens=_many(_TGI_TOKEN),
    ),
    "ImageAnswers": _many(_object({"answer": _TEXT, "score": _NUMBER})),
    "Info": _object(
        dict.fromkeys(("model_id", "model_pipeline_tag", "router", "version"), _TEXT)
        | dict.fromkeys(("model_sha", "sha", "docker_label"), _or_null(_TEXT))
        | dict.fromkeys(
            ("max_concurrent_requests", "max_best_of", "max_stop_sequences", "max_input_tokens", "max_total_tokens",
             "validation_workers", "max_client_batch_size"),
            _COUNT,
        )
    ),
    "Tokens": _TOKENS,
    "ChatTokens": _object({"tokenize_response": _ref("Tokens"), "templated_text": _TEXT}),
    "Document": {"type": "object"},
    "ErrorFields": _object(
        {
            "message": _TEXT,
            "type": _TEXT,
            "param": _or_null(_TEXT),
            "code": {"type": "string", "enum": sorted({error.code for error in concrete_errors()})},
        }
    ),
    "Error": _object({"error": _ref("ErrorFields")}),
    "TgiError": _object({"error": _TEXT, "error_type": _TEXT}),
}  # fmt: skip

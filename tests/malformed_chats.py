"""Chat requests that are refused, each with the field that the refusal names. Written by hand, as JSON text.

JSON text and not Python values, because much of what is malformed can't be said in Python.
"""

import json

from tests.malformed_json import NO_OBJECTS, USER, Case


def chat(field_name: str, value: str) -> bytes:
    """A good chat request but for one field, which is this JSON text."""
    return f'{{"model": "script", "messages": [{USER}], "{field_name}": {value}}}'.encode()


def nested(depth: int, inside: str = "1") -> str:
    """JSON text so deep."""
    return '{"a": ' * depth + inside + "}" * depth


# Each value is wrong, and the field itself is named.
FIELDS: dict[str, tuple[str, ...]] = {
    "model": ("5", "true", "[]", "{}", '["script"]', json.dumps("x" * 300)),
    "messages": ("null", "5", "true", '"hi"', "{}", "[]", USER),
    "temperature": ("-0.1", "2.1", '"1"', '""', "true", "[]", "{}", "1e999", "-1e999", "[0.5]"),
    "top_p": ("-0.5", "1.0001", '"0.5"', "false", "1e999"),
    "top_k": ("-2", "1.5", '"40"', "true", "[40]", "2147483648", "9" * 30),
    "min_p": ("-0.1", "1.1", '"0"', "{}"),
    "max_tokens": ("0", "-1", "-0", "1.5", "1e10", "true", '"5"', "[]", "{}", "2147483648", "9" * 60),
    "max_completion_tokens": ("0", "-1", "1.5", "true", '"5"', "9" * 60),
    "min_tokens": ("-1", "0.5", '"0"', "true", "9" * 60),
    "seed": ("1.5", '"7"', "true", "[]", "9223372036854775808", "-9223372036854775809", "1e30"),
    "stop": ("5", "true", "{}", '[""]', '["a", ""]', json.dumps([f"stop{n}" for n in range(17)])),
    "n": ("0", "-1", "17", "1.5", "true", '"2"', "9" * 60),
    "logprobs": ("1", "5", '"true"', "[]", "0"),
    "top_logprobs": ("-1", "21", "true", '"2"', "2.5", "3"),
    "frequency_penalty": ("-2.1", "2.1", '"0"', "true", "1e999"),
    "presence_penalty": ("-2.1", "2.1", '"0"', "[]"),
    "repetition_penalty": ("0", "-1", "10.5", '"1"', "1e999"),
    "ignore_eos": ("1", '"no"', "[]"),
    "stream": ("1", '"true"', "[]", "{}"),
    "stream_options": ("5", "[]", '"usage"', "{}", '{"include_usage": true}'),
    "parallel_tool_calls": ("1", '"yes"'),
    "user": ("5", "[]", "{}"),
    "safety_identifier": ("5",),
    "prompt_cache_key": ("5",),
    "metadata": ("5", "[]", '"a"'),
    "response_format": ("5", "true", "[]", '"json_object"'),
    "structured_outputs": ("5", "[]", "{}", '{"json": {}, "regex": "a"}', '{"regex": "a", "choice": ["a"]}'),
    "tools": ("5", "{}", '"all"', json.dumps([{"type": "function", "function": {"name": "f"}}] * 129)),
    "tool_choice": ("5", "true", "[]", '"some"', '"function"', '"required"', '{"function": {"name": "f"}}'),
    # OpenAI's, and not here
    "logit_bias": ('{"50256": -100}', "5"),
    "modalities": ('["audio"]', '["text", "audio"]', '"text"', "5"),
    "audio": ('{"voice": "alloy"}', "5"),
    "functions": ('[{"name": "f"}]', "5"),
    "function_call": ('{"name": "f"}', "5"),
    "service_tier": ('"flex"', "5"),
    "store": ("true", '"yes"'),
    # nobody's
    "temprature": ("1",),
    "Temperature": ("1",),
    "messages ": ("[]",),
    "__class__": ('"x"',),
    "model_config": ("{}",),
    "neutral": ("{}",),
    "prompt": ('"hi"',),
    "{field}": ("1",),
}

# Each value is wrong, and what is named stands inside it.
INSIDE: dict[str, tuple[tuple[str, str], ...]] = {
    "stop": (("[1]", "stop[0]"), ('["a", null]', "stop[1]"), ('[["a"]]', "stop[0]")),
    "metadata": (('{"a": 5}', "metadata.a"), ('{"a": null}', "metadata.a"), ('{"a": {"b": "c"}}', "metadata.a")),
    "stream_options": (
        ('{"include_usage": 1}', "stream_options.include_usage"),
        ('{"usage": true}', "stream_options.usage"),
    ),
    "response_format": (
        ("{}", "response_format.type"),
        ('{"type": null}', "response_format.type"),
        ('{"type": 5}', "response_format.type"),
        ('{"type": ["text"]}', "response_format.type"),
        ('{"type": "xml"}', "response_format.type"),
        ('{"type": "text", "text": "x"}', "response_format.text"),
        ('{"type": "json_object", "schema": []}', "response_format.schema"),
        ('{"type": "json_schema"}', "response_format.json_schema"),
        ('{"type": "json_schema", "json_schema": 5}', "response_format.json_schema"),
        ('{"type": "json_schema", "json_schema": []}', "response_format.json_schema"),
        ('{"type": "json_schema", "json_schema": {"schema": 5}}', "response_format.json_schema.schema"),
        ('{"type": "json_schema", "json_schema": {"schema": []}}', "response_format.json_schema.schema"),
        ('{"type": "json_schema", "json_schema": {"schema": "{}"}}', "response_format.json_schema.schema"),
        ('{"type": "json_schema", "json_schema": {"schema": {"a": 1e999}}}', "response_format.json_schema.schema"),
        ('{"type": "json_schema", "json_schema": {"name": 5}}', "response_format.json_schema.name"),
        ('{"type": "json_schema", "json_schema": {"scheme": {}}}', "response_format.json_schema.scheme"),
        ('{"type": "json_schema", "json_schema": {"strict": 1}}', "response_format.json_schema.strict"),
        (
            f'{{"type": "json_schema", "json_schema": {{"schema": {nested(70)}}}}}',
            "response_format.json_schema.schema",
        ),
        (
            f'{{"type": "json_schema", "json_schema": {{"schema": {{"enum": ["{"x" * 70_000}"]}}}}}}',
            "response_format.json_schema.schema",
        ),
    ),
    "structured_outputs": (
        ('{"json": 5}', "structured_outputs.json"),
        ('{"json": []}', "structured_outputs.json"),
        ('{"json": "["}', "structured_outputs.json"),
        ('{"json": "[]"}', "structured_outputs.json"),
        ('{"json": ""}', "structured_outputs.json"),
        ('{"json": "{\\"a\\": NaN}"}', "structured_outputs.json"),
        ('{"json": {"a": -1e999}}', "structured_outputs.json"),
        (f'{{"json": {nested(70)}}}', "structured_outputs.json"),
        (json.dumps({"json": nested(5000)}), "structured_outputs.json"),
        (json.dumps({"json": "[" * 50_000}), "structured_outputs.json"),
        ('{"regex": 5}', "structured_outputs.regex"),
        (json.dumps({"regex": "(a|b)*" * 20_000}), "structured_outputs.regex"),
        ('{"choice": []}', "structured_outputs.choice"),
        ('{"choice": "a"}', "structured_outputs.choice"),
        ('{"choice": [""]}', "structured_outputs.choice"),
        ('{"choice": [5]}', "structured_outputs.choice[0]"),
        (json.dumps({"choice": ["a"] * 1001}), "structured_outputs.choice"),
        ('{"grammar": ["root"]}', "structured_outputs.grammar"),
    ),
    "tools": (
        ("[5]", "tools[0]"),
        ("[null]", "tools[0]"),
        ('["f"]', "tools[0]"),
        ("[[]]", "tools[0]"),
        ("[{}]", "tools[0].type"),
        ('[{"type": "retrieval"}]', "tools[0].type"),
        ('[{"type": "function"}]', "tools[0].function"),
        ('[{"type": "function", "function": 5}]', "tools[0].function"),
        ('[{"type": "function", "function": {}}]', "tools[0].function.name"),
        ('[{"type": "function", "function": {"name": 5}}]', "tools[0].function.name"),
        ('[{"type": "function", "function": {"name": ""}}]', "tools[0].function.name"),
        ('[{"type": "function", "function": {"name": "a b"}}]', "tools[0].function.name"),
        ('[{"type": "function", "function": {"name": "a\\n"}}]', "tools[0].function.name"),
        (f'[{{"type": "function", "function": {{"name": "{"a" * 65}"}}}}]', "tools[0].function.name"),
        ('[{"type": "function", "function": {"name": "a", "parameters": []}}]', "tools[0].function.parameters"),
        ('[{"type": "function", "function": {"name": "a", "parameters": "{}"}}]', "tools[0].function.parameters"),
        (
            f'[{{"type": "function", "function": {{"name": "a", "parameters": {nested(70)}}}}}]',
            "tools[0].function.parameters",
        ),
        (
            '[{"type": "function", "function": {"name": "a", "parameters": {"b": 1e999}}}]',
            "tools[0].function.parameters",
        ),
        ('[{"type": "function", "function": {"name": "a", "strict": "yes"}}]', "tools[0].function.strict"),
        ('[{"type": "function", "function": {"name": "a", "strikt": true}}]', "tools[0].function.strikt"),
        (
            '[{"type": "function", "function": {"name": "a"}}, {"type": "function", "function": {}}]',
            "tools[1].function.name",
        ),
    ),
    "tool_choice": (
        ("{}", "tool_choice.function"),
        ('{"type": "function"}', "tool_choice.function"),
        ('{"type": "tool", "function": {"name": "f"}}', "tool_choice.type"),
        ('{"function": 5}', "tool_choice.function"),
        ('{"function": {}}', "tool_choice.function.name"),
        ('{"function": {"name": 5}}', "tool_choice.function.name"),
        ('{"function": {"name": "f", "x": 1}}', "tool_choice.function.x"),
    ),
}

# One message, after a good one: what is named stands in `messages[1]`.
MESSAGES: tuple[tuple[str, str], ...] = (
    ("5", ""),
    ("null", ""),
    ('"hi"', ""),
    ("[]", ""),
    ("{}", ".role"),
    ('{"content": "hi"}', ".role"),
    ('{"role": null, "content": "hi"}', ".role"),
    ('{"role": 5, "content": "hi"}', ".role"),
    ('{"role": ["user"], "content": "hi"}', ".role"),
    ('{"role": "robot", "content": "hi"}', ".role"),
    ('{"role": "User", "content": "hi"}', ".role"),
    ('{"role": "function", "content": "hi"}', ".role"),
    ('{"role": "user"}', ".content"),
    ('{"role": "user", "content": null}', ".content"),
    ('{"role": "user", "content": []}', ".content"),
    ('{"role": "user", "content": 5}', ".content"),
    ('{"role": "user", "content": true}', ".content"),
    ('{"role": "user", "content": {"type": "text", "text": "hi"}}', ".content"),
    ('{"role": "user", "content": ["hi"]}', ".content[0]"),
    ('{"role": "user", "content": [null]}', ".content[0]"),
    ('{"role": "user", "content": [[]]}', ".content[0]"),
    ('{"role": "user", "content": [{}]}', ".content[0].type"),
    ('{"role": "user", "content": [{"text": "hi"}]}', ".content[0].type"),
    ('{"role": "user", "content": [{"type": 5}]}', ".content[0].type"),
    ('{"role": "user", "content": [{"type": ["text"]}]}', ".content[0].type"),
    ('{"role": "user", "content": [{"type": "input_audio"}]}', ".content[0].type"),
    ('{"role": "user", "content": [{"type": "text"}]}', ".content[0].text"),
    ('{"role": "user", "content": [{"type": "text", "text": null}]}', ".content[0].text"),
    ('{"role": "user", "content": [{"type": "text", "text": 5}]}', ".content[0].text"),
    ('{"role": "user", "content": [{"type": "text", "text": ["hi"]}]}', ".content[0].text"),
    ('{"role": "user", "content": [{"type": "text", "text": "hi", "image_url": "x"}]}', ".content[0].image_url"),
    ('{"role": "user", "content": [{"type": "image_url"}]}', ".content[0].image_url"),
    ('{"role": "user", "content": [{"type": "image_url", "text": "x"}]}', ".content[0].text"),
    ('{"role": "user", "content": [{"type": "image_url", "image_url": null}]}', ".content[0].image_url"),
    ('{"role": "user", "content": [{"type": "image_url", "image_url": 5}]}', ".content[0].image_url"),
    ('{"role": "user", "content": [{"type": "image_url", "image_url": []}]}', ".content[0].image_url"),
    ('{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}', ".content[0].image_url.url"),
    ('{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}', ".content[0].image_url.url"),
    (
        '{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "detail": "max"}}]}',
        ".content[0].image_url.detail",
    ),
    (
        '{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "detial": "low"}}]}',
        ".content[0].image_url.detial",
    ),
    ('{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text"}]}', ".content[1].text"),
    ('{"role": "user", "content": "hi", "name": 5}', ".name"),
    ('{"role": "user", "content": "hi", "tool_call_id": "c"}', ".tool_call_id"),
    ('{"role": "user", "content": "hi", "refusal": 5}', ".refusal"),
    ('{"role": "user", "content": "hi", "contents": 1}', ".contents"),
    ('{"role": "tool", "content": "sunny"}', ".tool_call_id"),
    ('{"role": "tool", "content": "sunny", "tool_call_id": null}', ".tool_call_id"),
    ('{"role": "tool", "content": "sunny", "tool_call_id": 5}', ".tool_call_id"),
    ('{"role": "assistant", "content": "x", "audio": {"id": "a"}}', ".audio"),
    ('{"role": "assistant", "content": "x", "function_call": {"name": "f"}}', ".function_call"),
    ('{"role": "assistant", "tool_calls": []}', ".content"),
    ('{"role": "assistant", "tool_calls": 5}', ".tool_calls"),
    ('{"role": "assistant", "tool_calls": [5]}', ".tool_calls[0]"),
    ('{"role": "assistant", "tool_calls": [{}]}', ".tool_calls[0].id"),
    ('{"role": "assistant", "tool_calls": [{"id": "c"}]}', ".tool_calls[0].function"),
    (
        '{"role": "assistant", "tool_calls": [{"id": "c", "type": "x", "function": {"name": "f", "arguments": ""}}]}',
        ".tool_calls[0].type",
    ),
    (
        '{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {}}}]}',
        ".tool_calls[0].function.arguments",
    ),
    (
        '{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f"}}]}',
        ".tool_calls[0].function.arguments",
    ),
    (
        '{"role": "user", "content": "x", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": ""}}]}',
        ".tool_calls",
    ),
)


def chat_cases() -> dict[str, Case]:
    """All of the above, by readable names."""
    cases = {
        f"{name}: {value[:60]}": Case(chat(name, value), name) for name, values in FIELDS.items() for value in values
    }
    cases |= {f"{name}: {value[:60]} … {len(value)} at {param}": Case(chat(name, value), param)
              for name, pairs in INSIDE.items() for value, param in pairs}  # fmt: skip
    cases |= {
        f"message {value}": Case(f'{{"messages": [{USER}, {value}]}}'.encode(), f"messages[1]{param}")
        for value, param in MESSAGES
    }
    cases |= {f"chat with {name}": Case(body, None, "JSON") for name, body in NO_OBJECTS.items()}
    return cases | OTHERS


def _whole(text: str, param: str | None, says: str = "", status: int = 400, code: str = "invalid_request") -> Case:
    return Case(text.encode(), param, says, status, code)


OTHERS: dict[str, Case] = {
    "no field": _whole("{}", "messages"),
    "no messages": _whole('{"model": "script"}', "messages"),
    "both limits": _whole(f'{{"messages": [{USER}], "max_tokens": 1, "max_completion_tokens": 2}}', "max_tokens"),
    "more at least than at most": _whole(f'{{"messages": [{USER}], "max_tokens": 1, "min_tokens": 2}}', "min_tokens"),
    "two formats": _whole(
        f'{{"messages": [{USER}], "response_format": {{"type": "text"}}, "structured_outputs": {{"regex": "a"}}}}',
        "structured_outputs",
    ),
    "a chosen tool that isn't there": _whole(
        f'{{"messages": [{USER}], "tools": [{{"type": "function", "function": {{"name": "f"}}}}], '
        '"tool_choice": {"function": {"name": "g"}}}',
        "tool_choice",
        "no tool is named 'g'",
    ),
    "the last of two keys is wrong": _whole(f'{{"messages": [{USER}], "n": 1, "n": 0}}', "n"),
    "a key of 100,000 characters": _whole(f'{{"{"k" * 100_000}": 1, "messages": [{USER}]}}', "k" * 100 + "…"),
    "a long key in metadata": _whole(
        f'{{"messages": [{USER}], "metadata": {{"{"k" * 9999}": 1}}}}', "metadata." + "k" * 100 + "…"
    ),
    "a role of 100,000 characters": _whole(
        f'{{"messages": [{{"role": "{"r" * 100_000}", "content": ""}}]}}', "messages[0].role"
    ),
    "a type of 100,000 characters": _whole(
        f'{{"messages": [{USER}], "response_format": {{"type": "{"t" * 100_000}"}}}}', "response_format.type"
    ),
    "an unknown model": _whole(
        f'{{"model": "nothing", "messages": [{USER}]}}', "model", "expected one of script", 404, "model_not_found"
    ),
    "nearly a model": _whole(
        f'{{"model": "scripd", "messages": [{USER}]}}', "model", "did you mean 'script'", 404, "model_not_found"
    ),
    "a model in capitals": _whole(f'{{"model": "SCRIPT", "messages": [{USER}]}}', "model", "", 404,
                                  "model_not_found"),
    "an empty model": _whole(f'{{"model": "", "messages": [{USER}]}}', "model", "", 404, "model_not_found"),
    "a model with a NUL": _whole(f'{{"model": "script\\u0000", "messages": [{USER}]}}', "model", "", 404,
                                 "model_not_found"),
    "a model that is a path": _whole(f'{{"model": "../../etc/passwd", "messages": [{USER}]}}', "model", "", 404,
                                     "model_not_found"),
    "a prompt beyond the context": _whole(
        f'{{"messages": [{{"role": "user", "content": "{"word " * 2000}"}}]}}', "messages", "2000 tokens", 400,
        "context_length_exceeded"),
    "an answer beyond the context": _whole(
        f'{{"messages": [{USER}], "max_tokens": 1000000000}}', "max_tokens", "", 400, "context_length_exceeded"),
    "the engine's own refusal": _whole('{"messages": [{"role": "user", "content": "!no-such"}]}', "messages",
                                       "unknown command"),
}  # fmt: skip

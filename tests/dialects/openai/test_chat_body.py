"""The chat body's fields: what they ask of an engine, and what is refused with a sentence. No service needed."""

import json
from typing import Any

import pytest

from serve_app.dialects.openai.chat_body import ChatBody
from serve_app.errors import InvalidRequest
from serve_app.exchange.validation import parse_json
from serve_app.messages import OutputFormat, Sampling, ToolCall

USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def body(**fields: Any) -> ChatBody:
    return parse_json(json.dumps({"messages": [USER]} | fields).encode(), ChatBody)


def test_left_out_fields_leave_the_choice_to_the_model() -> None:
    assert body().sampling() == Sampling()
    assert body().tool_use() is None


@pytest.mark.parametrize(
    ("fields", "sampling"),
    [
        ({"n": 3, "seed": 7}, Sampling(num_answers=3, seed=7)),
        ({"logprobs": True}, Sampling(num_logprobs=0)),
        ({"logprobs": True, "top_logprobs": 5}, Sampling(num_logprobs=5)),
        (
            {"top_k": 40, "min_p": 0.1, "repetition_penalty": 1.2},
            Sampling(top_k=40, min_p=0.1, repetition_penalty=1.2),
        ),
        ({"top_k": -1}, Sampling()),
        ({"frequency_penalty": 1, "presence_penalty": -1}, Sampling(frequency_penalty=1, presence_penalty=-1)),
        (
            {"ignore_eos": True, "min_tokens": 4, "max_tokens": 4},
            Sampling(max_tokens=4, min_tokens=4, ignores_eos=True),
        ),
        ({"response_format": {"type": "text"}}, Sampling()),
        ({"response_format": {"type": "json_object"}}, Sampling(output_format=OutputFormat("json_object"))),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string"}}}},
            Sampling(output_format=OutputFormat("json_schema", '{"type": "string"}')),
        ),
        ({"structured_outputs": {"regex": "a+"}}, Sampling(output_format=OutputFormat("regex", "a+"))),
        ({"structured_outputs": {"choice": ["é"]}}, Sampling(output_format=OutputFormat("choice", '["é"]'))),
        ({"structured_outputs": {"json": {}}}, Sampling(output_format=OutputFormat("json_schema", "{}"))),
    ],
)
def test_sampling_fields_reach_the_engine(fields: dict[str, Any], sampling: Sampling) -> None:
    assert body(**fields).sampling() == sampling


def test_tools_reach_the_engine() -> None:
    use = body(tools=[TOOL]).tool_use()
    assert use is not None
    assert (use.choice, use.name, use.is_parallel) == ("auto", None, True)
    assert (use.tools[0].name, json.loads(use.tools[0].parameters)) == ("weather", {"type": "object"})
    choice = {"type": "function", "function": {"name": "weather"}}
    named = body(tools=[TOOL], tool_choice=choice, parallel_tool_calls=False).tool_use()
    assert named is not None
    assert (named.choice, named.name, named.is_parallel) == ("named", "weather", False)


def test_a_turn_that_called_a_tool_and_its_answer() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    _, called, answered = body(messages=messages).messages
    assert called.internal_calls == (ToolCall("c1", "weather", "{}"),)
    assert (answered.internal_role, answered.tool_call_id) == ("tool", "c1")


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": nested(40)}}}, "json_schema"),
        ({"structured_outputs": {"json": nested(40)}}, "structured_outputs"),
        ({"structured_outputs": {"json": json.dumps(nested(40))}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a" * 70_000}}, "structured_outputs"),
        ({"structured_outputs": {"json": {"enum": [f"value {i}" for i in range(60_000)]}}}, "structured_outputs"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": nested(40)}}]}, "tools[0]"),
    ],
)
def test_a_form_that_no_engine_should_compile_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match=r"nested more than 64|at most 65,536|no JSON") as raised:
        body(**fields)
    assert raised.value.param is not None
    assert param in raised.value.param


def called_with(arguments: str) -> ChatBody:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return body(messages=[{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}])


@pytest.mark.parametrize(
    "arguments", ["[" * 65 + "]" * 65, "[" * 1000 + "]" * 1000, "[" * 100_000, json.dumps(nested(40)), '{"a":' * 9000]
)
def test_a_calls_arguments_are_no_deeper_than_a_schema(arguments: str) -> None:
    with pytest.raises(InvalidRequest, match="nested more than 64 deep") as raised:
        called_with(arguments)
    assert raised.value.param == "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize("arguments", ["", "no JSON", "[" * 64 + "]" * 64, json.dumps([{"a": "{[" * 100}] * 200)])
def test_other_arguments_are_left_to_the_engine(arguments: str) -> None:
    assert called_with(arguments).messages[1].internal_calls == (ToolCall("c", "f", arguments),)


def test_variables_of_the_chat_template_reach_the_engine() -> None:
    assert body().template_args() == body(chat_template_kwargs={}).template_args() == ""
    told = body(chat_template_kwargs={"enable_thinking": False, "budget": 5}, reasoning_effort="low").template_args()
    assert json.loads(told) == {"enable_thinking": False, "budget": 5, "reasoning_effort": "low"}


@pytest.mark.parametrize(
    "name", ["chat_template", "messages", "tools", "tokenize", "padding", "__class__.x", "", "a b"]
)
def test_what_is_no_variable_of_a_chat_template_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="no variable") as raised:
        body(chat_template_kwargs={name: True})
    assert raised.value.param == "chat_template_kwargs"


VLLM_DEFAULTS: dict[str, Any] = {
    "logit_bias": None, "top_logprobs": 0, "logprobs": False, "n": 1, "stop": [], "tool_choice": "none",
    "include_reasoning": True, "use_beam_search": False, "length_penalty": 1.0, "stop_token_ids": [],
    "include_stop_str_in_output": False, "ignore_eos": False, "min_tokens": 0, "skip_special_tokens": True,
    "spaces_between_special_tokens": True, "truncate_prompt_tokens": None, "prompt_logprobs": None, "bad_words": [],
    "echo": False, "add_generation_prompt": True, "continue_final_message": False, "add_special_tokens": False,
    "documents": None, "chat_template_kwargs": None, "mm_processor_kwargs": None, "priority": 0, "cache_salt": None,
    "return_token_ids": None, "kv_transfer_params": None, "a_field_of_a_later_version": None,
}  # fmt: skip


def test_a_client_may_send_vllms_defaults() -> None:
    assert body(**VLLM_DEFAULTS).sampling() == Sampling()
    assert body(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}).stream


@pytest.mark.parametrize("field", ["stop_token_ids", "echo", "length_penalty", "a_field_of_a_later_version"])
def test_what_asks_for_something_that_isnt_there_is_refused(field: str) -> None:
    with pytest.raises(InvalidRequest, match=r"isn't supported|unknown field") as raised:
        body(**{field: [7]})
    assert raised.value.param == field


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 100}, "n", "less than or equal to 16"),
        ({"top_logprobs": 2}, "top_logprobs", "only allowed with logprobs=true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"frequency_penalty": 3}, "frequency_penalty", "less than or equal to 2"),
        ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
        ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "exactly one"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least 1"),
        ({"structured_outputs": {"gbnf": "x"}}, "structured_outputs.gbnf", "unknown field 'gbnf'"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name", "pattern"),
        ({"tools": [TOOL], "tool_choice": {"function": {"name": "other"}}}, "tool_choice", "no tool is named"),
        ({"tool_choice": "required"}, "tool_choice", "send tools"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "isn't supported"),
        ({"chat_template_kwargs": {"a": [1]}}, "chat_template_kwargs.a", "valid"),
        ({"chat_template_kwargs": {"a" * 70: 1}}, "chat_template_kwargs." + "a" * 70, "at most 64"),
        ({"reasoning_effort": "utmost"}, "reasoning_effort", "'medium'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "needs it"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "the message is empty"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content", "empty"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str | None, sentence: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        body(**fields)
    assert sentence in raised.value.message
    assert raised.value.param == param


@pytest.mark.parametrize("field", ["top_k", "max_tokens", "max_completion_tokens", "min_tokens"])
def test_a_count_beyond_32_bits_never_reaches_an_engine(field: str) -> None:
    """In a batch it would fail everybody's request: tensors of counts can't hold it."""
    with pytest.raises(InvalidRequest, match=f"{field}: .* less than 2147483648"):
        body(**{field: 2**31})
    body(**{field: 2**31 - 1})

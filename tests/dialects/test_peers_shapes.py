"""Shapes of requests and answers that this service's peers have, as their clients and suites send and read them."""

import json
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource

from serve_app.dialects.openai.chat_body import ChatBody
from serve_app.dialects.openai.completion_body import CompletionBody
from serve_app.dialects.tgi.body import GenerateBody
from serve_app.errors import ContextTooLong, InvalidRequest, concrete_errors
from serve_app.exchange.validation import validate
from serve_app.messages import OutputFormat
from tests.dialects.test_malformed import check_error
from tests.malformed_captions import IMAGE
from tests.own_lane import CONTEXT_TOKENS, MODEL, echo

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "Who are you?"}
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris"]}}, "required": ["city"],
        "additionalProperties": False}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": name, "parameters": CITY}} for name in ("weather", "news")]
CALLABLE = {"type": "function", "function": {"name": "news"}}


def _chat(**fields: Any) -> ChatBody:
    return validate({"messages": [USER], **fields}, ChatBody, strict=True)


def _events(client: httpx.Client, body: dict[str, Any], path: str = CHAT) -> list[dict[str, Any]]:
    with client.stream("POST", path, json=body | {"stream": True}) as answer:
        texts = [event.data for event in EventSource(answer).iter_sse()]
    assert texts.pop() == "[DONE]"
    return [json.loads(text) for text in texts]


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_schema", "json_schema": {"name": "a", "schema": CITY}},
        {"type": "json_schema", "value": {"name": "a", "strict": True, "schema": CITY}},
        {"type": "json_object", "schema": CITY},
        {"type": "json_object", "value": CITY},
        {"type": "json", "value": CITY},
    ],
)
def test_a_schema_may_stand_where_peers_have_it(form: dict[str, Any]) -> None:
    output_format = _chat(response_format=form).sampling().output_format
    assert output_format is not None
    assert json.loads(output_format.spec) == CITY


def test_tgis_grammar_may_say_strict() -> None:
    grammar = {"type": "json_schema", "value": {"name": "a", "strict": True, "schema": CITY}}
    body = validate({"inputs": "Where?", "parameters": {"grammar": grammar}}, GenerateBody, strict=True)
    output_format = body.parameters.sampling(has_token_details=False).output_format
    assert output_format is not None
    assert json.loads(output_format.spec) == CITY


@pytest.mark.parametrize("grammar", ['root ::= "ye" "s" | "no"', 'start: "yes" | "no"'])
def test_a_grammar_in_either_notation_holds_the_answer(demo: httpx.Client, grammar: str) -> None:
    body = {"messages": [USER], "structured_outputs": {"grammar": grammar}, "max_tokens": 10}
    assert demo.post(CHAT, json=body).json()["choices"][0]["message"]["content"] in ("yes", "no")
    assert _chat(structured_outputs={"grammar": grammar}).sampling().output_format == OutputFormat("grammar", grammar)


@pytest.mark.parametrize(
    "grammar",
    [
        "root ::= (",
        "no grammar at all",
        "root ::= x",
        "(" * 60_000,
        "(" * 16_000,
        "root ::= x" + "\n" * 16_000,
        'start: "a" b',
    ],
)
def test_what_is_no_grammar_is_refused(demo: httpx.Client, grammar: str) -> None:
    answer = demo.post(CHAT, json={"messages": [USER], "structured_outputs": {"grammar": grammar}, "max_tokens": 5})
    assert check_error(answer, 400, "invalid_request")["param"] in (
        "structured_outputs",
        "structured_outputs.grammar",
    )


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"type": "json_schema"}, "response_format.json_schema"),
        (
            {"type": "json_schema", "json_schema": {"schema": CITY}, "value": {"schema": CITY}},
            "response_format.value",
        ),
        ({"type": "json_object", "schema": CITY, "value": CITY}, "response_format.schema"),
        ({"type": "json_object", "schema": 5}, "response_format.schema"),
    ],
)
def test_two_schemas_or_none_are_refused(form: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as told:
        _chat(response_format=form)
    assert told.value.param == param


@pytest.mark.parametrize(
    ("choice", "kind", "name", "offered"),
    [
        ("news", "named", "news", ["weather", "news"]),
        (CALLABLE, "named", "news", ["weather", "news"]),
        ("required", "required", None, ["weather", "news"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [CALLABLE]}}, "auto", None, ["news"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [CALLABLE]}}, "required", None,
         ["news"]),
    ],
)  # fmt: skip
def test_a_tool_is_chosen_as_peers_let_it(choice: Any, kind: str, name: str | None, offered: list[str]) -> None:
    use = _chat(tools=TOOLS, tool_choice=choice).tool_use()
    assert use is not None
    assert (use.choice, use.name, [tool.name for tool in use.tools]) == (kind, name, offered)
    assert {tool.is_strict for tool in use.tools} == {kind != "auto"}


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ("sports", "tool_choice"),
        ({"type": "allowed_tools"}, "tool_choice.allowed_tools"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": [CALLABLE]}},
         "tool_choice.allowed_tools.mode"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
         "tool_choice.allowed_tools.tools"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {
            "name": "sports"}}]}}, "tool_choice"),
    ],
)  # fmt: skip
def test_a_tool_that_isnt_there_cant_be_chosen(choice: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as told:
        _chat(tools=TOOLS, tool_choice=choice)
    assert told.value.param == param


@pytest.mark.parametrize("parameters", [{"type": "string"}, {"type": ["object", "null"]}])
def test_a_functions_arguments_are_an_object(parameters: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="must be object"):
        _chat(tools=[{"type": "function", "function": {"name": "f", "parameters": parameters}}])
    meant: Any
    for meant in ({"properties": {"a": {}}}, {}, None):
        body = _chat(tools=[{"type": "function", "function": {"name": "f", "parameters": meant}}])
        use = body.tool_use()
        assert use is not None
        assert json.loads(use.tools[0].parameters)["type"] == "object"


def test_completions_have_chats_name_for_their_limit(demo: httpx.Client) -> None:
    answer = demo.post(COMPLETIONS, json={"prompt": "User:", "max_completion_tokens": 3, "ignore_eos": True})
    assert answer.json()["usage"]["completion_tokens"] == 3
    with pytest.raises(InvalidRequest, match="send one of them"):
        validate({"prompt": "a", "max_tokens": 1, "max_completion_tokens": 2}, CompletionBody, strict=True)


def test_tokenize_takes_what_generate_does(demo: httpx.Client) -> None:
    whole = demo.post("/tokenize", json={"inputs": "a red circle", "parameters": {"max_new_tokens": 5}}).json()
    end = demo.post("/tokenize", json={"inputs": "a red circle", "parameters": {"truncate": 2}}).json()
    assert end == whole[-2:]
    assert demo.post("/tokenize", json={"inputs": "a", "parameters": {"temprature": 1}}).status_code == 422


def test_details_have_an_empty_prefill_and_the_seed_that_was_used(demo: httpx.Client) -> None:
    def details(**parameters: Any) -> dict[str, Any]:
        body = {"inputs": "User:", "parameters": {"max_new_tokens": 8} | parameters}
        told = demo.post("/generate", json=body).json()
        return {**told["details"], "text": told["generated_text"]}

    assert details(decoder_input_details=True)["prefill"] == []
    assert details(details=True)["seed"] is None
    sampled = details(details=True, do_sample=True, temperature=2.0)
    again = details(details=True, do_sample=True, temperature=2.0, seed=sampled["seed"])
    assert (again["text"], again["seed"]) == (sampled["text"], sampled["seed"])
    assert details(details=True, do_sample=True)["seed"] != sampled["seed"]
    refused = demo.post("/generate_stream", json={"inputs": "a", "parameters": {"decoder_input_details": True}})
    assert refused.status_code == 422


def test_models_have_vllms_names_too(script: httpx.Client) -> None:
    (entry,) = script.get("/v1/models").json()["data"]
    assert (entry["root"], entry["max_model_len"]) == (MODEL, CONTEXT_TOKENS)
    assert entry == script.get(f"/v1/models/{MODEL}").json()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "word " * 2000}]}),
        (CHAT, echo("x", max_tokens=5000)),
        (COMPLETIONS, {"prompt": "word " * 2000}),
        ("/v1/captions", {"image": IMAGE, "prompt": "word " * 2000}),
    ],
)
def test_a_context_too_long_is_told_in_openais_words(script: httpx.Client, path: str, body: Any) -> None:
    error = check_error(script.post(path, json=body), 400, "context_length_exceeded")
    words = f"This model's maximum context length is {CONTEXT_TOKENS} tokens. However, you"
    assert (error["message"] or "").startswith(words)
    told = script.post("/generate", json={"inputs": "word " * 2000}).json()
    assert told["error"].startswith(words)
    assert ContextTooLong in concrete_errors()


def test_what_a_stream_joins_is_a_text_in_every_event(demo: httpx.Client) -> None:
    told = _events(demo, {"messages": [USER]})
    assert all(isinstance(event["choices"][0]["delta"]["content"], str) for event in told)
    assert told[-1]["choices"][0] == {
        "index": 0, "delta": {"content": ""}, "logprobs": None, "finish_reason": "stop",
    }  # fmt: skip
    assert len({event["system_fingerprint"] for event in told}) == 1


def test_the_role_costs_no_token(demo: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    told = _events(demo, {"messages": [USER], "stream_options": options, "n": 2, "temperature": 1})
    assert told[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert told[0]["usage"]["completion_tokens"] == 0
    assert told[0]["usage"]["prompt_tokens"] == told[-1]["usage"]["prompt_tokens"]
    assert told[1]["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_token_that_ends_an_answer_is_no_part_of_its_logprobs(demo: httpx.Client, stream: bool) -> None:
    body = {"messages": [USER], "logprobs": True, "top_logprobs": 1}
    if stream:
        told = [event["choices"][0] for event in _events(demo, body)]
        text = "".join(choice["delta"].get("content") or "" for choice in told)
        tokens = [one for choice in told for one in (choice["logprobs"] or {"content": []})["content"]]
    else:
        choice = demo.post(CHAT, json=body).json()["choices"][0]
        text, tokens = choice["message"]["content"], choice["logprobs"]["content"]
    assert "".join(one["token"] for one in tokens) == text

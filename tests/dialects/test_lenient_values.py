"""Values that OpenAI's service takes, and what it makes of them: whole numbers with a point, bounds, nothing said."""

import json
from typing import Any

import httpx
import pytest

from serve_app.dialects.captions.body import CaptionForm
from serve_app.dialects.openai.chat_body import ChatBody
from serve_app.dialects.openai.completion_body import CompletionBody
from serve_app.exchange.validation import validate
from serve_app.messages import Sampling
from tests.dialects.test_malformed import check_error
from tests.malformed_captions import IMAGE
from tests.own_lane import echo

CHAT, COMPLETIONS, CAPTIONS = "/v1/chat/completions", "/v1/completions", "/v1/captions"
USER = {"role": "user", "content": "!echo a b c"}
LONG = "word " * 2000
BAD_SCHEMA = {"type": "object", "properties": {"a": {"type": "nope"}}}


def _sampling(**fields: Any) -> Sampling:
    return validate({"messages": [USER], **fields}, ChatBody, strict=True).sampling()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            CHAT,
            '{"messages": [{"role": "user", "content": "!echo a b c"}], "max_tokens": 2.0, "seed": 1e3, "n": 1.0}',
        ),
        (COMPLETIONS, '{"prompt": "!echo a b c", "max_tokens": 2.0, "logprobs": 1.0, "best_of": 1.0}'),
        ("/generate", '{"inputs": "!echo a b c", "parameters": {"max_new_tokens": 2.0, "top_n_tokens": 1.0}}'),
    ],
)
def test_a_whole_number_may_have_a_point(script: httpx.Client, path: str, text: str) -> None:
    answer = script.post(path, content=text)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told.get("generated_text", "a b ").strip() == "a b"
    assert told.get("usage", {}).get("completion_tokens", 2) == 2


def test_no_probability_at_all_leaves_the_likeliest_token(demo: httpx.Client) -> None:
    assert (_sampling(top_p=0).top_k, _sampling(top_p=0, top_k=50).top_k) == (1, 1)
    assert _sampling(top_p=0).top_p is None
    body = {"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 30}
    greedy, least = (demo.post(CHAT, json=body | more).json() for more in ({}, {"temperature": 2, "top_p": 0}))
    assert greedy["choices"][0]["message"] == least["choices"][0]["message"]


def test_minus_one_is_no_seed() -> None:
    assert (_sampling(seed=-1).seed, _sampling(seed=-2).seed, _sampling(seed=0).seed) == (None, -2, 0)
    assert validate({"seed": -1}, CaptionForm, strict=True).sampling().seed is None
    assert validate({"seed": -1, "prompt": "a"}, CompletionBody, strict=True).sampling().seed is None


def test_five_answers_without_a_seed_differ(demo: httpx.Client) -> None:
    body = {"prompt": "a", "temperature": 2, "max_tokens": 12, "seed": -1}  # each of forty was another one
    assert len({demo.post(COMPLETIONS, json=body).json()["choices"][0]["text"] for _ in range(5)}) > 1


@pytest.mark.parametrize("content", ["", [{"type": "text", "text": ""}]])
def test_an_empty_text_is_answered(script: httpx.Client, demo: httpx.Client, content: Any) -> None:
    for client in (script, demo):
        answer = client.post(CHAT, json={"messages": [{"role": "user", "content": content}], "max_tokens": 4})
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CAPTIONS, {"image": IMAGE, "prompt": LONG}, "prompt"),
        (CAPTIONS, {"image": IMAGE, "max_tokens": 5000}, "max_tokens"),
        (CHAT, echo("x", max_completion_tokens=5000), "max_completion_tokens"),
        (CHAT, echo("x", max_completion_tokens=5000, stream=True), "max_completion_tokens"),
        (CHAT, {"messages": [{"role": "user", "content": LONG}]}, "messages"),
        (COMPLETIONS, {"prompt": LONG}, "prompt"),
        (COMPLETIONS, {"prompt": ["a", LONG]}, "prompt[1]"),
        (COMPLETIONS, {"prompt": [1, -1]}, "prompt[1]"),
        (COMPLETIONS, {"prompt": [1, "a"]}, "prompt[1]"),
        (COMPLETIONS, {"prompt": ["a", 1]}, "prompt[1]"),
        (COMPLETIONS, {"prompt": [[1], [1, 2**31]]}, "prompt[1][1]"),
        (COMPLETIONS, {"prompt": [[1], "a"]}, "prompt[1]"),
        (COMPLETIONS, {"prompt": {"a": 1}}, "prompt"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (CHAT, {"messages": [{"role": "user", "content": {"type": "text", "text": "a"}}]}, "messages[0].content"),
    ],
)
def test_an_error_names_the_clients_own_field(script: httpx.Client, path: str, body: Any, param: str) -> None:
    refused = script.post(path, json=body)
    error = check_error(refused, 400, refused.json()["error"]["code"])
    assert error["param"] == param
    assert param in (error["message"] or "") or error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CAPTIONS, {"image": IMAGE, "format": {"type": "json", "schema": BAD_SCHEMA}}, "format"),
        (CHAT, {"messages": [USER], "structured_outputs": {"json": BAD_SCHEMA}}, "structured_outputs"),
        (CHAT, {"messages": [USER], "structured_outputs": {"regex": "("}, "stream": True}, "structured_outputs"),
        (COMPLETIONS, {"prompt": "a", "structured_outputs": {"json": BAD_SCHEMA}}, "structured_outputs"),
        (COMPLETIONS, {"prompt": [1, 99_999_999]}, "prompt"),
    ],
)
def test_an_engines_own_refusal_does_too(demo: httpx.Client, path: str, body: Any, param: str) -> None:
    error = check_error(demo.post(path, json=body), 400, "invalid_request")
    assert error["param"] == param
    assert "response_format" not in (error["message"] or "")


def test_tgi_calls_its_prompt_inputs(script: httpx.Client) -> None:
    told = script.post("/generate", json={"inputs": LONG}).json()["error"]
    assert "inputs" in told
    assert "messages" not in told
    assert json.loads(script.post("/tokenize", json={"inputs": LONG}).text)[0]["text"] == "word"

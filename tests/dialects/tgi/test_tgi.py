"""TGI's dialect over the demo model, in this process: what is answered, in whose shape."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serve_app.dialects.tgi.routes import ROUTES
from tests.drawings import data_uri, png, says
from tests.own_lane import MODEL, bearer
from tests.tgi_page import mistakes

PROMPT = "<|im_start|>User:\n{}<end_of_utterance>\nAssistant:\n"  # the demo's template, for one turn
WHO = PROMPT.format("Who are you?")


@pytest.fixture(scope="module")
def client(demo_lane: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=demo_lane, headers=bearer("all"), trust_env=False, timeout=60) as client:
        yield client


def image(color: str, shape: str) -> str:
    return f"![]({data_uri(png(color, shape))})"


def generate(client: httpx.Client, inputs: str, path: str = "/generate", **parameters: Any) -> dict[str, Any]:
    response = client.post(path, json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert mistakes(answer, "GenerateResponse") == []
    return answer


def stream(
    client: httpx.Client, inputs: str, path: str = "/generate_stream", **parameters: Any
) -> list[dict[str, Any]]:
    body = {"inputs": inputs, "parameters": parameters} | ({"stream": True} if path == "/" else {})
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *events, rest = response.text.split("\n\n")
    assert rest == ""
    assert all(event.startswith('data:{"index":') for event in events)
    read = [json.loads(event.removeprefix("data:")) for event in events]
    assert [problem for event in read for problem in mistakes(event, "StreamResponse")] == []
    return read


def test_an_answer_is_a_text_unless_details_are_asked_for(client: httpx.Client) -> None:
    assert list(generate(client, WHO)) == ["generated_text"]
    answer = generate(client, WHO, details=True)
    details = answer["details"]
    assert details["finish_reason"] == "eos_token"
    assert details["generated_tokens"] == len(details["tokens"])
    *tokens, end = details["tokens"]
    assert "".join(token["text"] for token in tokens) == answer["generated_text"]
    assert (end["text"], end["special"]) == ("<end_of_utterance>", True)
    assert not any(token["special"] for token in tokens)
    assert len({token["id"] for token in tokens}) > 3
    assert details["prefill"] == []


def test_a_stream_says_the_same_token_by_token(client: httpx.Client) -> None:
    whole = generate(client, WHO, details=True, top_n_tokens=2)
    events = stream(client, WHO, details=True, top_n_tokens=2)
    assert [event["token"] for event in events] == whole["details"]["tokens"]
    assert [event["top_tokens"] for event in events] == whole["details"]["top_tokens"]
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert [event["generated_text"] for event in events] == [None] * (len(events) - 1) + [whole["generated_text"]]
    assert "".join(e["token"]["text"] for e in events if not e["token"]["special"]) == whole["generated_text"]
    last = events[-1]["details"]
    assert (last["finish_reason"], last["generated_tokens"]) == ("eos_token", len(events))
    assert last["input_length"] == len(client.post("/tokenize", json={"inputs": WHO}).json())
    assert stream(client, WHO)[-1]["details"] is None


def test_a_stop_string_is_the_answers_end(client: httpx.Client) -> None:
    full = generate(client, WHO)["generated_text"]
    stop = full[10:14]
    answer = generate(client, WHO, stop=["never said", stop], details=True)
    assert answer["generated_text"] == full[: full.index(stop) + len(stop)]
    assert answer["details"]["finish_reason"] == "stop_sequence"
    events = stream(client, WHO, stop=[stop], details=True)
    assert "".join(event["token"]["text"] for event in events) == answer["generated_text"]
    assert events[-1]["details"]["finish_reason"] == "stop_sequence"


def test_the_length_is_a_hundred_tokens_at_most_unless_asked_for(client: httpx.Client) -> None:
    never_ends = {"type": "regex", "value": "(ab ){500}"}
    assert generate(client, "Hello", details=True, grammar=never_ends)["details"]["generated_tokens"] == 100
    short = generate(client, WHO, details=True, max_new_tokens=3)
    assert (short["details"]["generated_tokens"], short["details"]["finish_reason"]) == (3, "length")


def test_the_full_text_begins_with_the_prompt(client: httpx.Client) -> None:
    plain = generate(client, WHO)["generated_text"]
    assert generate(client, WHO, return_full_text=True)["generated_text"] == WHO + plain
    assert stream(client, WHO, return_full_text=True)[-1]["generated_text"] == WHO + plain


def test_sampling_is_off_until_something_asks_for_it(client: httpx.Client) -> None:
    def texts(**parameters: Any) -> set[str]:
        return {generate(client, "Hello", max_new_tokens=12, **parameters)["generated_text"] for _ in range(4)}

    assert len(texts()) == 1
    assert len(texts(temperature=3.0, seed=7)) == 1
    assert len(texts(temperature=3.0)) > 1
    assert len(texts(do_sample=True, top_k=700, temperature=3.0)) > 1


def test_the_best_of_several_is_the_likeliest(client: httpx.Client) -> None:
    details = generate(client, "Hello", best_of=4, do_sample=True, max_new_tokens=8, details=True)["details"]
    others = details.pop("best_of_sequences")
    assert len(others) == 3

    def mean(told: dict[str, Any]) -> float:
        return float(sum(token["logprob"] for token in told["tokens"])) / len(told["tokens"])

    assert mean(details) == max(mean(told) for told in (details, *others))


def test_a_prompt_is_cut_to_its_end(client: httpx.Client) -> None:
    cut = generate(client, "word " * 3000 + WHO, truncate=13, details=True)
    end = stream(client, "word " * 3000 + WHO, truncate=13, details=True)[-1]
    assert end["details"]["input_length"] == 13
    assert cut["generated_text"] == generate(client, WHO)["generated_text"]


@pytest.mark.parametrize(
    ("grammar", "fits"),
    [
        ({"type": "json", "value": {"enum": ["red", "blue"]}}, {'"red"', '"blue"'}),
        ({"type": "json", "value": '{"enum": ["red", "blue"]}'}, {'"red"', '"blue"'}),
        ({"type": "json_schema", "value": {"name": "color", "schema": {"const": 7}}}, {"7"}),
        ({"type": "regex", "value": "(ab){3}"}, {"ababab"}),
    ],
)
def test_a_grammar_binds(client: httpx.Client, grammar: dict[str, Any], fits: set[str]) -> None:
    assert generate(client, WHO, grammar=grammar)["generated_text"] in fits


def test_a_grammar_binds_a_chat_too(client: httpx.Client) -> None:
    for form, said in (
        ({"type": "json", "value": {"const": 7}}, "7"),
        ({"type": "regex", "value": "(ab){2}"}, "abab"),
    ):
        body = {"messages": [{"role": "user", "content": "Who are you?"}], "response_format": form}
        assert client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == said


@pytest.mark.parametrize(("color", "shape"), [("red", "circle"), ("blue", "square")])
def test_an_image_in_the_prompt_is_seen(client: httpx.Client, color: str, shape: str) -> None:
    prompt = PROMPT.format(image(color, shape) + "What is in this picture?")
    answer = generate(client, prompt, details=True)
    assert says(answer["generated_text"], color, shape)
    content = [
        {"type": "image_url", "image_url": {"url": data_uri(png(color, shape))}},
        {"type": "text", "text": "What is in this picture?"},
    ]
    chat = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]}).json()
    assert answer["generated_text"] == chat["choices"][0]["message"]["content"]
    assert stream(client, prompt, details=True)[-1]["details"]["input_length"] == chat["usage"]["prompt_tokens"]


def test_the_root_answers_as_the_hub_does(client: httpx.Client) -> None:
    response = client.post("/", json={"inputs": WHO})
    assert response.json() == [generate(client, WHO)]
    assert response.json() == client.post("/", json={"inputs": WHO, "stream": False, "parameters": None}).json()
    assert stream(client, WHO, path="/") == stream(client, WHO)
    assert response.headers["x-generated-tokens"] == str(len(stream(client, WHO)))


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", None])
def test_an_images_file_is_captioned(client: httpx.Client, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    answer = client.post("/", content=png("red", "circle"), headers=headers).json()
    assert mistakes(answer[0], "GenerateResponse") == []
    assert says(answer[0]["generated_text"], "red", "circle")
    broken = client.post("/", content=png("red", "circle")[:200], headers=headers)
    assert (broken.status_code, broken.json()["error_type"]) == (422, "validation")


def test_info_is_the_models(client: httpx.Client) -> None:
    info = client.get("/info").json()
    assert mistakes(info, "Info") == []
    assert (info["model_id"], info["max_total_tokens"]) == (MODEL, 2048)
    assert info["model_pipeline_tag"] == "image-text-to-text"


def test_tokens_stand_where_the_text_has_them(client: httpx.Client) -> None:
    text = "Hello, wörld <end_of_utterance>"
    tokens = client.post("/tokenize", json={"inputs": text}).json()
    assert mistakes(tokens, "TokenizeResponse") == []
    assert all(token["text"] == text[token["start"] : token["stop"]] for token in tokens)
    assert {place for token in tokens for place in range(token["start"], token["stop"])} == set(range(len(text)))
    assert tokens[-1]["text"] == "<end_of_utterance>"
    told = client.post("/generate", json={"inputs": text, "parameters": {"max_new_tokens": 1}})
    assert told.headers["x-prompt-tokens"] == str(len(tokens))


def test_a_conversation_is_tokenized_as_it_is_answered(client: httpx.Client) -> None:
    body = {"model": "tgi", "messages": [{"role": "user", "content": "Who are you?"}]}
    told = client.post("/chat_tokenize", json=body).json()
    assert mistakes(told, "ChatTokenizeResponse") == []
    assert told["templated_text"] == WHO
    usage = client.post("/v1/chat/completions", json=body).json()["usage"]
    assert usage["prompt_tokens"] == len(told["tokenize_response"])


def test_invocations_take_all_three_bodies(client: httpx.Client) -> None:
    generated = client.post("/invocations", json={"inputs": WHO}).json()
    assert generated == [generate(client, WHO)]
    text = generated[0]["generated_text"]
    chat = client.post("/invocations", json={"messages": [{"role": "user", "content": "Who are you?"}]}).json()
    assert chat["choices"][0]["message"]["content"] == text
    completion = client.post("/invocations", json={"prompt": WHO, "max_tokens": 100}).json()
    assert completion["choices"][0]["text"] == text
    for body in ({"inputs": WHO}, {"messages": [{"role": "user", "content": "a"}]}, {"prompt": WHO}):
        unknown = client.post("/invocations", json=body, headers={"x-model": "none"})
        assert (unknown.status_code, unknown.json()["error_type"]) == (404, "model_not_found")
    refused = client.post("/invocations", json={"messages": []})
    assert (refused.status_code, mistakes(refused.json(), "ErrorResponse")) == (422, [])


def test_probes_need_no_key_and_nothing_else_goes_without(client: httpx.Client) -> None:
    for path in ("/", "/ping", "/health"):
        assert client.get(path, headers={"authorization": ""}).json() == {"status": "ok"}
    for route in ROUTES:
        refused = client.request(route.method, route.path, headers={"authorization": ""})
        assert (refused.status_code, refused.json()["error_type"]) == (401, "invalid_api_key")


def test_the_model_is_chosen_outside_the_body(client: httpx.Client) -> None:
    body = {"inputs": WHO}
    assert client.post(f"/generate?model={MODEL}", json=body).status_code == 200
    assert client.post("/generate", json=body, headers={"x-model": MODEL}).status_code == 200
    assert client.post("/generate", json=body, headers={"x-model": "tgi"}).status_code == 200
    unknown = client.post("/generate?model=none", json=body)
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "model_not_found")
    two = client.post("/generate?model=none", json=body, headers={"x-model": MODEL})
    assert (two.status_code, two.json()["error_type"]) == (422, "validation")
    adapter = client.post("/generate", json=body | {"parameters": {"adapter_id": MODEL}})
    assert (adapter.status_code, adapter.json()["error_type"]) == (422, "validation")

"""OpenAI's completions, by its own client: over the demo model in this process, and over a script for bad input."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.dialects.test_malformed import check_error, check_serves_on
from tests.drawings import data_uri, png
from tests.malformed_json import NO_OBJECTS
from tests.own_lane import MODEL, bearer, lane_client
from tests.tgi_page import mistakes

WHO = "<|im_start|>User:\nWho are you?<end_of_utterance>\nAssistant:\n"
IMAGE_TOKEN = 4  # the demo's `<image>`


@pytest.fixture
def client(demo_lane: str) -> Iterator[openai.OpenAI]:
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(base_url=f"{demo_lane}/v1", api_key="sa-all", max_retries=0, http_client=http) as client:
        yield client


def test_a_completion_goes_on_with_the_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tgi", prompt=WHO, max_tokens=100, temperature=0)
    assert "demo model" in answer.choices[0].text
    assert (answer.choices[0].finish_reason, answer.model, answer.object) == ("stop", MODEL, "text_completion")
    assert answer.id.startswith("cmpl-")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    chat = client.chat.completions.create(model="dummy", messages=[{"role": "user", "content": "Who are you?"}])
    assert chat.choices[0].message.content == answer.choices[0].text
    assert chat.usage == answer.usage


def test_tgis_page_knows_this_answer_too(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tgi", prompt=WHO).model_dump(exclude_none=True)
    assert answer.pop("object") == "text_completion"
    assert mistakes(answer, "CompletionFinal") == []


def test_sixteen_tokens_unless_asked_for_more(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt=WHO)
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (16, "length")


@pytest.mark.parametrize("echo", [False, True])
def test_several_prompts_are_numbered_through(client: openai.OpenAI, echo: bool) -> None:
    prompts = [WHO, "a red"]
    whole = client.completions.create(model=MODEL, prompt=prompts, n=2, max_tokens=8, echo=echo)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    alone = [client.completions.create(model=MODEL, prompt=one, n=2, max_tokens=8, echo=echo) for one in prompts]
    assert [choice.text for choice in whole.choices] == [choice.text for one in alone for choice in one.choices]
    assert whole.choices[0].text.startswith(WHO) is echo
    stream = client.completions.create(
        model=MODEL, prompt=prompts, n=2, max_tokens=8, echo=echo, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    *chunks, last = stream
    for choice in whole.choices:
        pieces = [c.choices[0] for c in chunks if c.choices[0].index == choice.index]
        assert "".join(piece.text for piece in pieces) == choice.text
        assert [p.finish_reason for p in pieces if p.finish_reason] == [choice.finish_reason]
    assert (last.choices, last.usage) == ([], whole.usage)


def test_tokens_are_a_prompt_too(client: openai.OpenAI, demo_lane: str) -> None:
    told = httpx.post(f"{demo_lane}/tokenize", json={"inputs": WHO}, headers=bearer("all"), trust_env=False).json()
    tokens = [token["id"] for token in told]
    by_text, by_tokens, listed = (
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=100)
        for prompt in (WHO, tokens, [tokens] * 2)
    )
    assert by_text.choices == by_tokens.choices
    assert by_text.usage == by_tokens.usage
    assert {choice.text for choice in listed.choices} == {by_text.choices[0].text}


def test_logprobs_are_openais_lists(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt=WHO, max_tokens=6, logprobs=2).choices[0]
    told = whole.logprobs
    assert told is not None
    assert told.tokens
    assert told.token_logprobs
    assert told.top_logprobs
    assert told.text_offset
    assert "".join(told.tokens) == whole.text
    for token, logprob, top, offset in zip(
        told.tokens, told.token_logprobs, told.top_logprobs, told.text_offset, strict=True
    ):
        assert len(top) == 2
        assert top[token] == logprob == max(top.values())
        assert whole.text[offset:].startswith(token)
    chunks = [
        chunk.choices[0].logprobs
        for chunk in client.completions.create(model=MODEL, prompt=WHO, max_tokens=6, logprobs=2, stream=True)
    ]
    assert [token for chunk in chunks if chunk for token in chunk.tokens or []] == told.tokens
    assert [offset for chunk in chunks if chunk for offset in chunk.text_offset or []] == told.text_offset


def test_a_stop_string_is_left_out(client: openai.OpenAI) -> None:
    full = client.completions.create(model=MODEL, prompt=WHO, max_tokens=100).choices[0].text
    stopped = client.completions.create(model=MODEL, prompt=WHO, max_tokens=100, stop=full[10:14]).choices[0]
    assert (stopped.text, stopped.finish_reason) == (full[: full.index(full[10:14])], "stop")


def test_a_token_that_is_none_or_an_image_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="send ids from 0 to 1023") as told:
        client.completions.create(model=MODEL, prompt=[5, 100_000])
    assert told.value.param == "prompt"
    with pytest.raises(openai.BadRequestError, match="stands for an image") as told:
        client.completions.create(model=MODEL, prompt=[5, IMAGE_TOKEN])
    assert told.value.param == "prompt"
    written = client.completions.create(model=MODEL, prompt="a <image> here", max_tokens=1).usage
    assert written is not None
    assert written.prompt_tokens > 5, "its letters are read"


def test_an_image_in_the_prompt_is_seen_as_by_tgi(client: openai.OpenAI) -> None:
    """By whom `/generate` isn't asked any more: the hub's newer client for Node."""
    red, blue = (data_uri(png(color, "circle")) for color in ("red", "blue"))
    question = "<|im_start|>User:\n![]({})What color is the circle?<end_of_utterance>\nAssistant:\n"
    answer = client.completions.create(
        model="tgi", prompt=[question.format(red), "Hello", question.format(blue)], echo=True, temperature=0
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice, color, uri in zip(answer.choices, ("red", None, "blue"), (red, None, blue), strict=True):
        if color and uri:
            text = choice.text.removeprefix(question.format(uri))
            assert color in text.lower()
            assert uri not in text


@pytest.mark.parametrize("prompt", ["![alt](https://192.0.2.1/a.png) is", "![](image.png) is", "![](ftp://a/b) is"])
def test_a_text_about_images_stays_a_text(client: openai.OpenAI, prompt: str) -> None:
    answer = client.completions.create(model="tgi", prompt=prompt, max_tokens=2, echo=True)
    assert answer.choices[0].text.startswith(prompt)


@pytest.mark.parametrize("prompt", ["![](data:image/png;base64,AAAA)", "![](http://127.0.0.1:9/none.png)"])
def test_a_bad_image_in_the_prompt_is_refused(client: openai.OpenAI, prompt: str) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        client.completions.create(model="tgi", prompt=prompt)
    assert told.value.param == "prompt"


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with lane_client(tmp_path_factory.mktemp("lane")) as client:
        yield client


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": True}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": ["a", 5]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": "word " * 2000}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"echo": True, "prompt": [1, 2]}, "echo"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"n": 17}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"min_tokens": 17}, "min_tokens"),
    ],
)
def test_a_malformed_completion_is_refused(script: httpx.Client, fields: dict[str, Any], param: str) -> None:
    response = script.post("/v1/completions", json={"prompt": "!echo hi"} | fields)
    code = (
        "context_length_exceeded"
        if fields in ({"prompt": "word " * 2000}, {"max_tokens": 5000})
        else "invalid_request"
    )
    error = check_error(response, 400, code)
    assert (error["param"] or "").startswith(param)
    check_serves_on(script)


@pytest.mark.parametrize("body", NO_OBJECTS.values(), ids=list(NO_OBJECTS))
def test_what_is_no_object_is_refused(script: httpx.Client, body: bytes) -> None:
    check_error(script.post("/v1/completions", content=body), 400, "invalid_request")


def test_one_prompt_that_fails_fails_the_request(script: httpx.Client) -> None:
    body = {"prompt": ["!echo fine", "!oom"]}
    check_error(script.post("/v1/completions", json=body), 500, "engine_failed")
    late = script.post("/v1/completions", json={"prompt": ["!hang", "!fail-after 2"], "stream": True})
    assert late.status_code == 200
    assert json.loads(late.text.strip().split("data: ")[-1])["error"]["code"] == "engine_failed"
    check_serves_on(script)


@pytest.mark.parametrize("name", ["tgi", "dummy", "http://127.0.0.1:1", "https://a.example/models/x", None])
def test_a_stand_in_for_a_models_name_means_the_default(script: httpx.Client, name: str | None) -> None:
    chat = {"model": name, "messages": [{"role": "user", "content": "!echo hi"}]}
    for path, body in (
        ("/v1/chat/completions", chat),
        ("/v1/completions", {"model": name, "prompt": "!echo hi"}),
        ("/generate", {"model": name, "inputs": "!echo hi"}),
    ):
        assert script.post(path, json=body).status_code == 200, path
        assert script.post(path, json=body | {"model": "nobody"}).status_code == 404, path

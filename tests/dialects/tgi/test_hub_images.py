"""The hub's tasks on an image at `POST /`, as JSON: what is captioned, what is a question, and what is refused."""

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serve_app.config.applications import ModelConfig
from tests.dialects.tgi.test_malformed import check, check_serves_on
from tests.drawings import b64, png, says
from tests.own_lane import MODEL, bearer, lane_client
from tests.tgi_page import mistakes

RED, BLUE = b64(png("red", "circle")), b64(png("blue", "circle"))
ASKED = "What color is the circle?"
TEXT = b64(b"this is a text and no image")
CUT = RED[:200]


@pytest.fixture(scope="module")
def client(demo_lane: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=demo_lane, headers=bearer("all"), trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with lane_client(tmp_path_factory.mktemp("lane")) as client:
        yield client


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": {"question": ASKED, "image": RED}},
        {"inputs": {"question": ASKED, "image": f"data:image/png;base64,{RED}"}, "parameters": {"top_k": 3}},
        {"inputs": {"question": ASKED, "image": RED}, "model": "tgi", "options": {"wait_for_model": True}},
        {"question": ASKED, "image": RED, "inputs": RED, "parameters": {}},
        {"question": ASKED, "image": RED, "inputs": None, "parameters": None},
        {"question": ASKED, "image": RED, "parameters": {"top_k": None, "lang": None, "word_boxes": None}},
    ],
)
@pytest.mark.parametrize("path", ["/", "/invocations"])
def test_a_question_about_an_image_is_answered(client: httpx.Client, body: dict[str, Any], path: str) -> None:
    (answer,) = client.post(path, json=body).json()
    assert set(answer) == {"answer", "score"}
    assert "red" in answer["answer"].lower()
    assert 0 < answer["score"] <= 1


def test_the_score_is_the_answers_probability(client: httpx.Client) -> None:
    (answer,) = client.post("/", json={"question": ASKED, "image": BLUE}).json()
    prompt = f"<|im_start|>User:\n![](data:image/png;base64,{BLUE}){ASKED}<end_of_utterance>\nAssistant:\n"
    told = client.post("/generate", json={"inputs": prompt, "parameters": {"details": True}}).json()
    assert answer["answer"] == told["generated_text"].strip()
    total = sum(token["logprob"] for token in told["details"]["tokens"])
    assert answer["score"] == pytest.approx(math.exp(total), rel=1e-3)


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": RED},
        {"inputs": f"data:image/png;base64,{RED}"},
        {"inputs": f"{RED[:76]}\r\n{RED[76:]}\n", "parameters": {"max_new_tokens": 20}},
        {"inputs": RED, "model": "tgi", "parameters": {}, "options": {"use_cache": False}},
        {"inputs": RED, "question": None, "image": None},
    ],
)
def test_an_image_in_base64_is_captioned(client: httpx.Client, body: dict[str, Any]) -> None:
    (answer,) = client.post("/", json=body).json()
    assert mistakes(answer, "GenerateResponse") == []
    assert says(answer["generated_text"], "red", "circle")


@pytest.mark.parametrize(
    "prompt", ["iVBORw0KGgo is how a PNG begins", "UklGR?", "aGVsbG8=", "data:image/png;base64,a b"]
)
def test_what_only_begins_like_an_image_is_a_prompt(script: httpx.Client, prompt: str) -> None:
    answer = script.post("/", json={"inputs": f"!echo {prompt}", "parameters": {"return_full_text": False}})
    assert answer.json() == [{"generated_text": prompt}]
    plain = script.post("/", json={"inputs": prompt})
    assert plain.status_code == 200


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "neither": ({}, "inputs is missing"),
    "neither, inside": ({"inputs": {}}, "inputs.question is missing"),
    "no image": ({"question": ASKED}, "image is missing"),
    "no image, inside": ({"inputs": {"question": ASKED}}, "inputs.image is missing"),
    "the image as inputs alone": ({"question": ASKED, "inputs": RED}, "image is missing"),
    "no question": ({"image": RED}, "question is missing"),
    "no question beside inputs": ({"image": RED, "inputs": RED}, "question is missing"),
    "no question, inside": ({"inputs": {"image": RED}}, "inputs.question is missing"),
    "an empty question": ({"question": "", "image": RED}, "question: "),
    "a number as question": ({"inputs": {"question": 5, "image": RED}}, "inputs.question: "),
    "an empty image": ({"question": ASKED, "image": ""}, "image: "),
    "a list as image": ({"inputs": {"question": ASKED, "image": [1]}}, "inputs.image: "),
    "no base64": ({"question": ASKED, "image": "!not base64!"}, "image: the image isn't base64"),
    "no base64, inside": ({"inputs": {"question": ASKED, "image": "ä"}}, "inputs.image: the image isn't base64"),
    "a text as image": ({"question": ASKED, "image": TEXT}, "image: this looks like text"),
    "a text as image, inside": (
        {"inputs": {"question": ASKED, "image": TEXT}}, "inputs.image: this looks like text"),
    "a cut image": ({"question": ASKED, "image": CUT}, "image: the image is broken or cut short"),
    "a cut image alone": ({"inputs": CUT}, "inputs: the image is broken or cut short"),
    "a text as data URI": ({"inputs": "data:image/png;base64,aGVsbG8="}, "inputs: this looks like text"),
    "a private address": ({"question": ASKED, "image": "http://10.0.0.1/a.png"}, "image: "),
    "two images": ({"question": ASKED, "image": RED, "inputs": BLUE}, "inputs: it and image are two images"),
    "two questions": ({"question": ASKED, "inputs": {"question": ASKED, "image": RED}}, "unknown field 'question'"),
    "no answers": ({"question": ASKED, "image": RED, "parameters": {"top_k": 0}}, "parameters.top_k"),
    "a text as number": ({"question": ASKED, "image": RED, "parameters": {"top_k": "1"}}, "parameters.top_k"),
    "a language": ({"inputs": {"question": ASKED, "image": RED}, "parameters": {"lang": "de"}}, "parameters.lang"),
    "word boxes": ({"question": ASKED, "image": RED, "parameters": {"word_boxes": []}}, "parameters.word_boxes"),
    "TGI's parameter": ({"question": ASKED, "image": RED, "parameters": {"temperature": 1}}, "temperature"),
    "a caption's temperature": ({"inputs": RED, "parameters": {"temperature": 1}}, "parameters.temperature"),
    "a stream of it": ({"question": ASKED, "image": RED, "stream": True}, "unknown field 'stream'"),
    "a streamed caption": ({"inputs": RED, "stream": True}, "unknown field 'stream'"),
    "an unknown field": ({"question": ASKED, "image": RED, "questions": []}, "did you mean 'question'"),
    "beyond the context": ({"question": "word " * 2000, "image": RED}, "context length is 1000"),
    "an answer beyond it": ({"inputs": RED, "parameters": {"max_new_tokens": 5000}}, "ask for max_new_tokens of"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "says"), BAD.values(), ids=list(BAD))
@pytest.mark.parametrize("path", ["/", "/invocations"])
def test_what_is_wrong_is_named(script: httpx.Client, body: dict[str, Any], says: str, path: str) -> None:
    assert says in check(script.post(path, json=body), 422, "validation")
    check_serves_on(script)


def test_a_model_that_reads_text_only_says_so(tmp_path: Any) -> None:
    model = ModelConfig(source="none", engine="scripted", tasks=("chat",), engine_args={"takes_images": False})
    with lane_client(tmp_path, model) as client:
        refused = check(client.post("/", json={"inputs": {"question": ASKED, "image": RED}}), 422, "validation")
        assert f"inputs.image: model '{MODEL}' reads text only" in refused
        assert "doesn't do caption" in check(client.post("/", json={"inputs": RED}), 422, "validation")


def test_an_images_limit_counts_them(script: httpx.Client) -> None:
    blind = bearer("blind")
    assert script.post("/", json={"question": "!echo red", "image": RED}, headers=blind).status_code == 200
    check(script.post("/", json={"inputs": RED}, headers=blind), 429, "overloaded")

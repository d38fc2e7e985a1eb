"""Malformed requests in TGI's dialect: a status, a type, the field's name, in TGI's shape; and it serves on."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serve_app.dialects.tgi.dialect import TGI
from serve_app.dialects.tgi.routes import ROUTES
from serve_app.errors import ServeAppError, concrete_errors
from tests.dialects.test_malformed import OUR_INSIDES
from tests.malformed_json import NO_OBJECTS, Case
from tests.malformed_tgi import tgi_cases
from tests.own_lane import MODEL, SCRIPTED, as_bytes, bearer, lane_client
from tests.tgi_page import mistakes

CASES = tgi_cases()
POSTS = ("/", "/generate", "/generate_stream", "/invocations", "/tokenize", "/chat_tokenize")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with lane_client(tmp_path_factory.mktemp("lane")) as client:
        yield client


def check(response: httpx.Response, status: int, error_type: str) -> str:
    """TGI's error of this status and type, without our insides; its sentence."""
    error: dict[str, str] = response.json()
    assert (response.status_code, error.get("error_type")) == (status, error_type), error
    assert mistakes(error, "ErrorResponse") == []
    assert response.headers["content-type"] == "application/json"
    assert not OUR_INSIDES.search(error["error"]), error
    assert error["error"]
    return error["error"]


def check_serves_on(client: httpx.Client) -> None:
    good = client.post("/generate", json={"inputs": "!echo still here"})
    assert (good.status_code, good.json()) == (200, {"generated_text": "still here"})


def test_the_page_finds_mistakes() -> None:
    assert mistakes({"error": 5}, "ErrorResponse")
    assert mistakes({"generated_text": "a", "more": 1}, "GenerateResponse")
    assert mistakes({"index": 1, "token": {"id": 1, "text": "a", "logprob": 0.1}}, "StreamResponse")


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
@pytest.mark.parametrize("case", CASES.values(), ids=[name.encode("unicode_escape").decode() for name in CASES])
def test_a_malformed_request_is_refused(client: httpx.Client, case: Case, path: str) -> None:
    response = client.post(path, content=case.content)
    assert case.says in check(response, case.status, case.code)
    check_serves_on(client)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("body", NO_OBJECTS.values(), ids=list(NO_OBJECTS))
def test_what_is_no_object_is_refused(client: httpx.Client, body: bytes, path: str) -> None:
    check(client.post(path, content=body), 422, "validation")


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "error_type"),
    [
        ("/generate", {"inputs": "hi", "stream": True}, {}, 422, "validation"),
        ("/generate_stream", {"inputs": "hi", "stream": False}, {}, 422, "validation"),
        ("/generate_stream", {"inputs": "hi", "parameters": {"best_of": 2, "do_sample": True}}, {}, 422,
         "validation"),
        ("/tokenize", {"inputs": "hi", "parameters": 5}, {}, 422, "validation"),
        ("/tokenize", {"inputs": ""}, {}, 422, "validation"),
        ("/chat_tokenize", {"messages": []}, {}, 422, "validation"),
        ("/chat_tokenize", {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "http://10.0.0.1/x"}}]}]}, {}, 422, "validation"),
        ("/invocations", {"messages": [{"role": "robot", "content": "x"}]}, {}, 422, "validation"),
        ("/invocations", {"prompt": 5}, {}, 422, "validation"),
        ("/generate", {"inputs": "hi"}, {"x-model": "x" * 300}, 422, "validation"),
        ("/generate", {"inputs": "hi"}, {"x-model": "nothing"}, 404, "model_not_found"),
        ("/generate", {"inputs": "hi"}, {"authorization": ""}, 401, "invalid_api_key"),
        ("/generate", {"inputs": "hi"}, {"authorization": "Bearer sa-elsewhere"}, 403, "forbidden"),
        ("/generate", {"inputs": "x" * 400_000}, {}, 413, "validation"),
        ("/generate", {"inputs": "hi"}, {"x-more": "x" * 9000}, 431, "headers_too_large"),
        ("/generate", {"inputs": "hi"}, {"x-request-timeout": "never"}, 422, "validation"),
        ("/generate", {"inputs": "!hang"}, {"x-request-timeout": "0.2"}, 504, "deadline_exceeded"),
        ("/generate", {"inputs": "!oom"}, {}, 424, "generation"),
        ("/generate", {"inputs": "!fail-after 2"}, {}, 424, "generation"),
        ("/generate_stream", {"inputs": "!oom"}, {}, 424, "generation"),
        ("/", {"inputs": "!oom", "stream": True}, {}, 424, "generation"),
    ],
)  # fmt: skip
def test_every_failure_has_tgis_shape(
    client: httpx.Client, path: str, body: Any, headers: dict[str, str], status: int, error_type: str
) -> None:
    check(client.post(path, json=body, headers=as_bytes(headers)), status, error_type)
    check_serves_on(client)


TYPES = {
    "overloaded": (429, "overloaded"),
    "rate_limit_exceeded": (429, "overloaded"),
    "engine_failed": (424, "generation"),
    "replica_died": (424, "generation"),
    "internal_error": (500, "incomplete_generation"),
    "body_too_large": (413, "validation"),
    "image_too_large": (413, "validation"),
}


@pytest.mark.parametrize("error", concrete_errors())
def test_every_error_has_a_status_and_a_type_here(error: type[ServeAppError]) -> None:
    told = error("change this", "prompt", 1.0)
    assert mistakes(TGI.error_json(told), "ErrorResponse") == []
    own = (422, "validation") if error.status == 400 else (error.status, error.code)
    assert (TGI.status(told), TGI.error_json(told)["error_type"]) == TYPES.get(error.code, own)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A model with two adapters, one of which is called what others call the default."""
    model = SCRIPTED.model_copy(update={"adapters": {"pirate": "none", "tgi": "none"}})
    with lane_client(tmp_path_factory.mktemp("lane"), model) as client:
        yield client


@pytest.mark.parametrize(
    ("headers", "adapter", "answering"),
    [
        ({}, None, MODEL),
        ({"x-model": "dummy"}, None, MODEL),
        ({"x-model": "tgi"}, None, "tgi"),
        ({"x-model": "pirate"}, None, "pirate"),
        ({}, "pirate", "pirate"),
        ({"x-model": MODEL}, "pirate", "pirate"),
    ],
)
def test_an_adapter_answers(
    adapted: httpx.Client, headers: dict[str, str], adapter: str | None, answering: str
) -> None:
    body = {"inputs": "!oom", "parameters": {"adapter_id": adapter}}
    assert f"model '{answering}'" in check(adapted.post("/generate", json=body, headers=headers), 424, "generation")


@pytest.mark.parametrize(
    ("headers", "adapter", "status"),
    [({}, MODEL, 422), ({}, "nobody", 404), ({"x-model": "pirate"}, "tgi", 422), ({"x-model": "nobody"}, "tgi", 404)],
)
def test_an_adapter_that_is_none_is_refused(
    adapted: httpx.Client, headers: dict[str, str], adapter: str, status: int
) -> None:
    body = {"inputs": "hi", "parameters": {"adapter_id": adapter}}
    refused = adapted.post("/generate", json=body, headers=headers)
    check(refused, status, "validation" if status == 422 else "model_not_found")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
@pytest.mark.parametrize(("allowed", "path"), [(route.method, route.path) for route in ROUTES])
def test_a_wrong_method_too(client: httpx.Client, method: str, allowed: str, path: str) -> None:
    if method != allowed and (method, path) != ("GET", "/"):  # which is a probe
        refused = check(client.request(method, path), 405, "method_not_allowed")
        assert allowed in refused.partition(": use ")[2]


def test_a_limit_is_told_as_overload(client: httpx.Client) -> None:
    spent = bearer("spent")
    assert client.post("/generate", json={"inputs": "!echo a"}, headers=spent).status_code == 200
    refused = client.post("/generate", json={"inputs": "!echo a"}, headers=spent)
    check(refused, 429, "overloaded")
    assert int(refused.headers["retry-after"]) > 0


def test_a_late_failure_is_an_event(client: httpx.Client) -> None:
    response = client.post("/generate_stream", json={"inputs": "!fail-after 2"})
    first, second, error, rest = response.text.split("\n\n")
    assert (response.status_code, rest) == (200, "")
    assert [json.loads(one.removeprefix("data:"))["index"] for one in (first, second)] == [1, 2]
    assert error.startswith('data:{"error":')
    told = json.loads(error.removeprefix("data:"))
    assert told["error_type"] == "generation"
    assert mistakes(told, "ErrorResponse") == []


def test_strange_texts_are_answered(client: httpx.Client) -> None:
    for text in ("a\0b", "\ufeff", "\u202e", "😀" * 100, "![", "![](", "[](x)", "!" * 1000, "](" * 1000):
        response = client.post("/generate", json={"inputs": f"!echo {text}"})
        assert (response.status_code, response.json()["generated_text"]) == (200, f"{text}".strip())
        tokens = client.post("/tokenize", json={"inputs": text}).json()
        assert mistakes(tokens, "TokenizeResponse") == []


def test_neutral_values_change_nothing(client: httpx.Client) -> None:
    nulls = dict.fromkeys(
        ("typical_p", "watermark", "decoder_input_details", "best_of", "temperature", "seed", "stop", "grammar",
         "adapter_id", "top_n_tokens", "truncate", "max_new_tokens", "do_sample", "details", "return_full_text")
    )  # fmt: skip
    options = {"use_cache": False, "wait_for_model": True}
    body = {"inputs": "!echo a b", "parameters": nulls | {"watermark": False}, "options": options}
    assert client.post("/generate", json=body).json() == {"generated_text": "a b"}

"""A model's direct lane: the same HTTP API as the common address, from the model's own process, for it alone."""

import json

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient

from tests.drawings import b64, data_uri, png
from tests.service import RunningService

pytestmark = pytest.mark.cluster

DEMO, SCRIPT = "/models/demo", "/models/script"


def chat(client: httpx.Client, lane: str, text: str, **fields: object) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}], **fields}
    return client.post(f"{lane}/v1/chat/completions", json=body)


def test_a_caption_comes_the_same_by_either_way(client: httpx.Client) -> None:
    body = {"image": b64(png("red", "circle", (200, 200))), "style": "detailed"}
    direct, common = (client.post(f"{lane}/v1/captions", json=body | {"model": "demo"}).json() for lane in (DEMO, ""))
    assert "red circle" in direct["data"][0]["caption"]
    for answer in (direct, common):
        assert answer["data"][0].pop("timing")["total_s"] > 0
    assert direct["data"] == common["data"]
    assert direct["model"] == "demo"


def test_streamed_events_are_the_same_by_either_way(client: httpx.Client) -> None:
    def events(lane: str) -> list[dict[str, object]]:
        streamed = chat(
            client, lane, "!echo a b c", model="script", stream=True, stream_options={"include_usage": True}
        )
        lines = [line.removeprefix("data: ") for line in streamed.text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        parsed: list[dict[str, object]] = [json.loads(line) for line in lines]
        return [{key: value for key, value in event.items() if key not in ("id", "created")} for event in parsed]

    assert events(SCRIPT) == events("")


def test_tgis_routes_answer_the_same_by_either_way(client: httpx.Client) -> None:
    body = {"inputs": "Hello", "parameters": {"details": True, "max_new_tokens": 8, "top_n_tokens": 1}}
    direct, common = (client.post(f"{lane}/generate_stream", json=body).text for lane in (DEMO, ""))
    assert direct == common
    assert direct.count('data:{"index":') == 8
    for path in ("/generate", "/", "/tokenize"):
        sent = {"inputs": "Hello"} if path == "/tokenize" else body
        direct, common = (client.post(f"{lane}{path}", json=sent).json() for lane in (DEMO, ""))
        assert direct == common
    chosen, own = (
        client.post(url, json={"inputs": "!echo a b"}).json()
        for url in ("/generate?model=script", f"{SCRIPT}/generate")
    )
    assert chosen == own == {"generated_text": "a b"}
    bare, root = (client.post(path, json={"inputs": "!echo a b"}).json() for path in (SCRIPT, f"{SCRIPT}/"))
    assert bare == root == [{"generated_text": "!echo a ba b"}]
    assert client.get(f"{SCRIPT}/info").json()["model_id"] == "script"
    failed = client.post("/generate?model=script", json={"inputs": "!oom"})
    assert (failed.status_code, failed.json()["error_type"]) == (424, "generation")
    assert client.put(f"{SCRIPT}/generate").json()["error_type"] == "method_not_allowed"


def test_the_hubs_client_works_on_it(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this one stays on the machine
    for address in (f"{service.url}{SCRIPT}", f"{service.url}{SCRIPT}/"):
        client = InferenceClient(model=address)
        assert client.text_generation("!echo a b", return_full_text=False) == "a b"
        assert list(client.text_generation("!echo a b", stream=True)) == ["a ", "b"]


def test_completions_answer_the_same_by_either_way(client: httpx.Client) -> None:
    body = {"model": "demo", "prompt": ["Hello", "a red"], "logprobs": 1}
    direct, common = (client.post(f"{lane}/v1/completions", json=body).json()["choices"] for lane in (DEMO, ""))
    assert direct == common


def test_openai_client_works_on_it(service: RunningService) -> None:
    http = httpx.Client(trust_env=False)
    with openai.OpenAI(base_url=f"{service.url}{DEMO}/v1", api_key="none", http_client=http) as client:
        image = {"type": "image_url", "image_url": {"url": data_uri(png("blue", "square", (200, 200)))}}
        question = [image, {"type": "text", "text": "What is in this picture?"}]
        messages = [{"role": "user", "content": question}]
        stream = client.chat.completions.create(model="demo", messages=messages, stream=True)
        assert "blue square" in "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert [model.id for model in client.models.list()] == ["demo"]


def test_the_model_needs_no_name_and_another_one_is_refused(client: httpx.Client) -> None:
    assert chat(client, SCRIPT, "!echo hi").json()["choices"][0]["message"]["content"] == "hi"
    other = chat(client, SCRIPT, "!echo hi", model="demo")
    assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")
    assert "script" in other.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/v1/chat/completions", b"{", 400, "invalid_request"),
        ("/v1/chat/completions", b'{"messages": []}', 400, "invalid_request"),
        ("/v1/captions", b'{"image": "aGVsbG8="}', 400, "invalid_image"),
        ("/v1/captions", b'{"image": "http://10.0.0.1/x.png"}', 400, "image_url_refused"),
        ("/v1/chat/completions", b" " * 40_000_000, 413, "body_too_large"),
        ("/v1/nothing", b"{}", 404, "route_not_found"),
    ],
)
def test_limits_and_the_image_gate_hold_here_too(
    client: httpx.Client, path: str, body: bytes, status: int, code: str
) -> None:
    response = client.post(f"{DEMO}{path}", content=body)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert chat(client, DEMO, "Who are you?").status_code == 200


def test_health_ready_and_errors_before_the_first_event(client: httpx.Client) -> None:
    assert client.get(f"{DEMO}/health").json() == {"status": "ok"}
    assert client.get(f"{DEMO}/ready").json()["ready"] is True
    failed = chat(client, SCRIPT, "!oom", stream=True)
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "engine_failed")
    cut = chat(client, SCRIPT, "!fail-after 2", stream=True)
    assert cut.status_code == 200
    assert json.loads(cut.text.strip().split("data: ")[-1])["error"]["code"] == "engine_failed"


def test_its_requests_are_counted(client: httpx.Client) -> None:
    def num_requests() -> float:
        lines = client.get("/metrics").text.splitlines()
        wanted = [line for line in lines if line.startswith("serve_app_requests_total{") and 'model="script"' in line]
        return sum(float(line.split()[-1]) for line in wanted)

    before = num_requests()
    for _ in range(3):
        assert chat(client, SCRIPT, "!echo counted").status_code == 200
    for _ in range(100):
        if num_requests() >= before + 3:
            return
        httpx.get(f"{client.base_url}/health", trust_env=False)
    raise AssertionError("three requests, and the sidecar doesn't know of them")

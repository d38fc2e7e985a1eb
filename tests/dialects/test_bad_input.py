"""Bad input through the whole service: a status, a code, a sentence that names the field; and it serves on."""

import httpx
import pytest
from PIL import Image

from tests.drawings import b64, data_uri, encode, png

pytestmark = pytest.mark.cluster

IMAGE = b64(png("red", "circle"))
HUGE = b64(encode(Image.new("1", (20_000, 20_000))))
TRUNCATED = b64(encode(Image.effect_noise((200, 200), 80).convert("RGB"), "JPEG")[:3000])
HI = [{"role": "user", "content": "hi"}]


def chat(**fields: object) -> dict[str, object]:
    return {"model": "demo", "messages": HI} | fields


CHAT_CASES = {
    "unknown field": (chat(temprature=1), 400, "invalid_request", "did you mean 'temperature'"),
    "unknown model": (chat(model="demmo"), 404, "model_not_found", "did you mean 'demo'"),
    "model no text": (chat(model=7), 400, "invalid_request", "model"),
    "no messages": ({"model": "demo"}, 400, "invalid_request", "messages is missing"),
    "empty messages": (chat(messages=[]), 400, "invalid_request", "messages"),
    "empty content": (chat(messages=[{"role": "user", "content": []}]), 400, "invalid_request", "empty"),
    "null content": (chat(messages=[{"role": "user", "content": None}]), 400, "invalid_request", "content"),
    "unknown role": (chat(messages=[{"role": "robot", "content": "x"}]), 400, "invalid_request", "messages[0].role"),
    "unknown part": (
        chat(messages=[{"role": "user", "content": [{"type": "video"}]}]), 400, "invalid_request", "content[0]",
    ),
    "number as text": (chat(max_tokens="5"), 400, "invalid_request", "max_tokens"),
    "negative max_tokens": (chat(max_tokens=-1), 400, "invalid_request", "max_tokens"),
    "contradiction": (chat(max_tokens=1, max_completion_tokens=2), 400, "invalid_request", "send one of them"),
    "hot": (chat(temperature=2.5), 400, "invalid_request", "temperature"),
    "top_p above one": (chat(top_p=1.5), 400, "invalid_request", "top_p"),
    "stop empty": (chat(stop=[""]), 400, "invalid_request", "stop"),
    "stream_options alone": (chat(stream_options={"include_usage": True}), 400, "invalid_request", "stream_options"),
    "several answers": (chat(n=300), 400, "invalid_request", "n: Input should be less than or equal to 16"),
    "tools": (chat(tools=[{"type": "function"}]), 400, "invalid_request", "tools[0].function is missing"),
    "context too long": (chat(messages=[{"role": "user", "content": "word " * 20_000}]), 400,
                         "context_length_exceeded", "tokens"),
    "answer too long": (chat(max_tokens=1_000_000), 400, "context_length_exceeded", "1000000"),
    "image for a text model": (
        {"model": "script", "messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": data_uri(png("red", "circle"))}}]}]},
        400, "unsupported_task", "text only"),
    "private address": (
        chat(messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "http://10.0.0.1/x.png"}}]}]),
        400, "image_url_refused", "image_url"),
}  # fmt: skip

CAPTION_CASES = {
    "no image": ({}, 400, "invalid_request", "image"),
    "both fields": ({"image": IMAGE, "images": [IMAGE]}, 400, "invalid_request", "exactly one"),
    "no images": ({"images": []}, 400, "invalid_request", "images"),
    "hundred images": ({"images": [IMAGE] * 100}, 400, "too_many_images", "16"),
    "text file": ({"image": b64(b"just some text, nothing to see here")}, 400, "invalid_image", "image"),
    "no base64": ({"image": "!!!"}, 400, "invalid_image", "base64"),
    "truncated JPEG": ({"image": TRUNCATED}, 400, "invalid_image", "image"),
    "20,000 x 20,000": ({"image": HUGE}, 413, "image_too_large", "pixels"),
    "unknown style": ({"image": IMAGE, "style": "poem"}, 400, "invalid_request", "style"),
    "url and b64": ({"image": {"url": "x", "b64": "y"}}, 400, "invalid_request", "exactly one"),
    "text model": ({"image": IMAGE, "model": "script"}, 400, "unsupported_task", "caption"),
    "ftp": ({"image": {"url": "ftp://example.com/x.png"}}, 400, "image_url_refused", "http"),
}


def check(response: httpx.Response, status: int, code: str, part: str) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), response.text[:500]
    assert part in error["message"] or part == error["param"], error
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.text
    assert "site-packages" not in response.text


@pytest.fixture(autouse=True)
def _serves_on(client: httpx.Client) -> object:
    """After each bad request, a good one is answered."""
    yield
    good = client.post("/v1/captions", json={"image": IMAGE})
    assert good.status_code == 200, good.text


@pytest.mark.parametrize("case", CHAT_CASES.values(), ids=list(CHAT_CASES))
def test_bad_chat(client: httpx.Client, case: tuple[dict[str, object], int, str, str]) -> None:
    body, status, code, part = case
    check(client.post("/v1/chat/completions", json=body), status, code, part)


@pytest.mark.parametrize("case", CAPTION_CASES.values(), ids=list(CAPTION_CASES))
def test_bad_caption(client: httpx.Client, case: tuple[dict[str, object], int, str, str]) -> None:
    body, status, code, part = case
    check(client.post("/v1/captions", json=body), status, code, part)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"nonsense", b'{"temperature": NaN}', b'{"messages": "\xff\xfe"}', b'{"model": "\\ud800"}',
     b"[" * 10_000, b'{"a":' * 10_000],
    ids=["empty", "open", "list", "no JSON", "NaN", "no UTF-8", "lone surrogate", "deep list", "deep object"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/captions"])
def test_bodies_that_are_no_json_object(client: httpx.Client, path: str, body: bytes) -> None:
    check(client.post(path, content=body), 400, "invalid_request", "JSON")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/captions"])
def test_a_50_mb_body(client: httpx.Client, path: str) -> None:
    response = client.post(path, content=b"x" * 50_000_000, headers={"content-type": "application/json"})
    check(response, 413, "body_too_large", "bytes")


def test_a_50_mb_upload(client: httpx.Client) -> None:
    check(client.post("/v1/captions", files={"image": b"x" * 50_000_000}), 413, "body_too_large", "bytes")


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("multipart/form-data", b"x"), ("multipart/form-data; boundary=a", b"--a\r\nnonsense"),
     ("multipart/form-data; boundary=a", b"--a--\r\n")],
)  # fmt: skip
def test_broken_forms(client: httpx.Client, content_type: str, body: bytes) -> None:
    response = client.post("/v1/captions", content=body, headers={"content-type": content_type})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_request"


def test_a_form_with_an_unknown_field(client: httpx.Client) -> None:
    response = client.post("/v1/captions", files={"image": png("red", "circle")}, data={"stile": "short"})
    check(response, 400, "invalid_request", "did you mean 'style'")


def test_one_pixel_is_an_image(client: httpx.Client) -> None:
    (caption,) = client.post("/v1/captions", json={"image": b64(encode(Image.new("RGB", (1, 1))))}).json()["data"]
    assert caption["object"] == "caption"


def test_unknown_routes_and_methods(client: httpx.Client) -> None:
    check(client.post("/v1/chat/completion"), 404, "route_not_found", "/v1/chat/completions")
    check(client.get("/v1/captions"), 405, "method_not_allowed", "POST")
    check(client.get("/v1/models/demmo"), 404, "model_not_found", "did you mean 'demo'")

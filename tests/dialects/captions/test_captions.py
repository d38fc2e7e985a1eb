"""Captions through the whole service: every way to send an image, and bad images among good ones."""

import http.server
import json
import threading
from functools import partial
from pathlib import Path

import httpx
import pytest

from serve_app.families import STYLES, caption_prompt
from tests.drawings import b64, data_uri, draw, encode, png, says

pytestmark = pytest.mark.cluster

RED_CIRCLE = png("red", "circle")
BLUE_SQUARE = png("blue", "square")


def stream_events(client: httpx.Client, body: dict[str, object]) -> list[str]:
    with client.stream("POST", "/v1/captions", json=body) as response:
        assert response.status_code == 200, response.read()
        return [line.removeprefix("data: ") for line in response.iter_lines() if line]


@pytest.mark.parametrize(
    "image",
    [data_uri(RED_CIRCLE), b64(RED_CIRCLE), {"b64": b64(RED_CIRCLE)}, {"url": data_uri(RED_CIRCLE)}],
    ids=["data URI", "base64", "b64 object", "url object"],
)
def test_every_json_form_of_one_image(client: httpx.Client, image: object) -> None:
    answer = client.post("/v1/captions", json={"image": image}).json()
    assert answer["object"] == "list"
    assert answer["model"] == "demo"
    (caption,) = answer["data"]
    assert says(caption["caption"], "red", "circle")
    assert caption["prompt"] == caption_prompt("generic", "short")
    assert caption["finish_reason"] == "stop"
    assert caption["usage"] == answer["usage"]


def test_an_image_by_its_address(client: httpx.Client, tmp_path: Path) -> None:
    """From a server on loopback, which the tests' config allows; a redirect into a private network isn't followed."""
    (tmp_path / "image.png").write_bytes(RED_CIRCLE)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/away":
                self.send_response(302)
                self.send_header("Location", "http://10.0.0.1/image.png")
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        answer = client.post("/v1/captions", json={"images": [f"{address}/image.png", f"{address}/away"]}).json()
        missing = client.post("/v1/captions", json={"image": {"url": f"{address}/nothing.png"}})
    finally:
        server.shutdown()
        server.server_close()
    assert says(answer["data"][0]["caption"], "red", "circle")
    assert answer["data"][1]["error"]["code"] == "image_url_refused"
    assert "10.0.0.1" not in answer["data"][1]["error"]["message"]
    assert (missing.status_code, missing.json()["error"]["code"]) == (400, "image_fetch_failed")


def test_an_upload(client: httpx.Client) -> None:
    jpeg = encode(draw("green", "square", (320, 200)), "JPEG")
    answer = client.post("/v1/captions", files={"image": ("x.jpg", jpeg)}, data={"style": "short"}).json()
    assert says(answer["data"][0]["caption"], "green", "square")


def test_several_uploads_keep_their_order(client: httpx.Client) -> None:
    files = [
        ("image", ("a.png", RED_CIRCLE)),
        ("image", ("b.txt", b"no image")),
        ("image", ("c.png", BLUE_SQUARE)),
    ]
    answer = client.post("/v1/captions", files=files).json()
    first, bad, last = answer["data"]
    assert says(first["caption"], "red", "circle")
    assert bad["object"] == "error"
    assert bad["error"]["code"] == "invalid_image"
    assert bad["error"]["param"] == "image[1]"
    assert says(last["caption"], "blue", "square")
    assert [first["index"], bad["index"], last["index"]] == [0, 1, 2]


@pytest.mark.parametrize("style", STYLES)
def test_every_style_says_its_prompt(client: httpx.Client, style: str) -> None:
    answer = client.post("/v1/captions", json={"image": b64(RED_CIRCLE), "style": style}).json()
    (caption,) = answer["data"]
    assert caption["prompt"] == caption_prompt("generic", style)
    assert says(caption["caption"], "red", "circle")


def test_a_prompt_of_ones_own(client: httpx.Client) -> None:
    body = {"image": b64(RED_CIRCLE), "prompt": "How many shapes are there?"}
    (caption,) = client.post("/v1/captions", json=body).json()["data"]
    assert caption["prompt"] == "How many shapes are there?"
    assert "1" in caption["caption"] or "one" in caption["caption"].lower()


def test_a_stream_of_several_images(client: httpx.Client) -> None:
    images = [b64(RED_CIRCLE), "bm90IGEgcGljdHVyZQ==", b64(BLUE_SQUARE)]
    *events, done = stream_events(client, {"images": images, "stream": True, "style": "detailed"})
    assert done == "[DONE]"
    parsed = [json.loads(event) for event in events]
    for index, (color, shape) in {0: ("red", "circle"), 2: ("blue", "square")}.items():
        mine = [event for event in parsed if event["index"] == index]
        assert [event["object"] for event in mine[:-1]] == ["caption.chunk"] * (len(mine) - 1)
        assert len(mine) > 2
        assert "".join(event["delta"] for event in mine[:-1]).strip() == mine[-1]["caption"]
        assert says(mine[-1]["caption"], color, shape)
    assert [event["error"]["code"] for event in parsed if event["object"] == "error"] == ["invalid_image"]


@pytest.mark.parametrize("stream", [False, True])
def test_only_bad_images_are_a_4xx(client: httpx.Client, stream: bool) -> None:
    one = client.post("/v1/captions", json={"image": b64(b"text"), "stream": stream})
    assert one.status_code == 400
    assert one.json()["error"]["param"] == "image"
    two = client.post("/v1/captions", json={"images": [b64(b"text"), b64(b"")], "stream": stream})
    assert two.status_code == 400
    assert "none of the 2 images" in two.json()["error"]["message"]
    assert two.json()["error"]["param"] == "images[0]"


def test_max_tokens_ends_a_caption(client: httpx.Client) -> None:
    (caption,) = client.post("/v1/captions", json={"image": b64(RED_CIRCLE), "max_tokens": 2}).json()["data"]
    assert caption["finish_reason"] == "length"
    assert caption["usage"]["completion_tokens"] == 2


def test_a_length_is_asked_for_and_told(client: httpx.Client) -> None:
    answer = client.post("/v1/captions", json={"image": b64(RED_CIRCLE), "style": "detailed", "length": 20})
    (caption,) = answer.json()["data"]
    assert caption["prompt"] == "Describe this picture in at most 20 words."
    assert caption["caption"]
    assert caption["timing"]["total_s"] > 0


def test_tags_come_as_a_list_and_an_object_as_an_object(client: httpx.Client) -> None:
    (tags,) = client.post("/v1/captions", json={"image": b64(RED_CIRCLE), "format": "tags"}).json()["data"]
    assert tags["prompt"] == caption_prompt("generic", "tags")
    assert "red" in " ".join(tags["tags"])
    schema = {
        "type": "object",
        "properties": {"shape": {"enum": ["circle", "square"]}},
        "required": ["shape"],
        "additionalProperties": False,
    }
    body = {"image": b64(RED_CIRCLE), "format": {"type": "json", "schema": schema}, "max_tokens": 60}
    body["frequency_penalty"] = 2  # else the demo model, which knows no JSON, fills it with empty lines
    (held,) = client.post("/v1/captions", json=body).json()["data"]
    assert held["json"]["shape"] in ("circle", "square")


def test_several_captions_of_one_image(client: httpx.Client) -> None:
    body = {"image": b64(RED_CIRCLE), "n": 3, "temperature": 0.7, "seed": 5}
    (caption,) = client.post("/v1/captions", json=body).json()["data"]
    assert len(caption["captions"]) == 3
    assert caption["captions"][0]["caption"] == caption["caption"]
    assert all(one["finish_reason"] == "stop" for one in caption["captions"])


def test_the_guard_looks_at_what_a_model_wrote(client: httpx.Client) -> None:
    body = {"images": [b64(RED_CIRCLE), b64(BLUE_SQUARE)], "guard": True}
    answer = client.post("/v1/captions", json=body).json()
    assert [one["guard"]["passed"] for one in answer["data"]] == [True, True]
    cut = client.post("/v1/captions", json={**body, "guard": {"retries": 1}, "max_tokens": 1}).json()
    for one in cut["data"]:
        assert one["guard"]["findings"] == ["truncated"]
        assert len(one["guard"]["attempts"]) == 2
        assert one["usage"]["completion_tokens"] == 2


def test_the_demo_model_says_what_it_understands(client: httpx.Client) -> None:
    answer = client.get("/v1/captions/styles", params={"model": "demo"}).json()
    assert {style["name"]: style["prompt"] for style in answer["styles"]} == {
        style: caption_prompt("generic", style) for style in STYLES
    }
    refused = client.get("/v1/captions/styles", params={"model": "script"}).json()
    assert refused["error"]["code"] == "unsupported_task"

"""The lines of TGI's guide to vision models, as people copy them: curl, the hub's client, OpenAI's, JavaScript's.

They are those of docs/source/basic_tutorials/visual_language_models.md of text-generation-inference, in our words:
the same commands, routes, parameters and schemas; the server's and the image's address are others, and the key.
`test_node_client.py` has the one in JavaScript. The prompts have no chat template around them, as there.
"""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from huggingface_hub import InferenceClient

from tests.drawings import data_uri, png, says
from tests.own_lane import MODEL
from tests.tgi_page import mistakes

CURL = "curl"
QUESTION = "What is in this picture?"
FIELDS: dict[str, Any] = {
    "location": {"type": "string"},
    "activity": {"type": "string"},
    "animals_seen": {"type": "integer", "minimum": 1, "maximum": 5},
    "animals": {"type": "array", "items": {"type": "string"}},
}
# The same for a model that would otherwise write a text for as long as it may.
BOUNDED: dict[str, Any] = FIELDS | {
    "location": {"type": "string", "maxLength": 20},
    "activity": {"type": "string", "maxLength": 20},
    "animals": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 2},
}
pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="no curl here: install it")


@pytest.fixture(scope="module", params=["address", "data URI"])
def image(request: pytest.FixtureRequest) -> Iterator[str]:
    """A red circle, by an address on loopback or as a data URI."""
    file = png("red", "circle")
    if request.param == "data URI":
        yield data_uri(file)
        return

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(file)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/circle.png"
    server.shutdown()
    server.server_close()


def curl(url: str, path: str, body: dict[str, Any], *more: str) -> str:
    """What curl printed. The guide's address has no scheme either."""
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", *more, f"{url.removeprefix('http://')}{path}",
               "-X", "POST", "-d", json.dumps(body), "-H", "Content-Type: application/json",
               "-H", "Authorization: Bearer sa-all"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def asked(image: str, **parameters: Any) -> dict[str, Any]:
    return {"inputs": f"![]({image}){QUESTION}\n\n", "parameters": {"seed": 42, **parameters}}


def conversation(image: str) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": image}}]
    return [{"role": "user", "content": parts}]


@pytest.mark.client(CURL, "text generation, streamed")
@pytest.mark.client(CURL, "an image in a prompt")
def test_curl_streams_from_generate_stream(demo_lane: str, image: str) -> None:
    printed = curl(demo_lane, "/generate_stream", asked(image, max_new_tokens=16), "-N")
    *events, rest = printed.split("\n\n")
    assert rest == ""
    assert all(event.startswith("data:{") for event in events)
    read = [json.loads(event.removeprefix("data:")) for event in events]
    assert [mistake for event in read for mistake in mistakes(event, "StreamResponse")] == []
    assert 1 < len(read) <= 16
    whole = json.loads(curl(demo_lane, "/generate", asked(image, max_new_tokens=16)))
    assert mistakes(whole, "GenerateResponse") == []
    assert read[-1]["generated_text"] == whole["generated_text"]
    assert "red" in whole["generated_text"].lower()


@pytest.mark.client(CURL, "text generation")
@pytest.mark.client(CURL, "output formats")
@pytest.mark.parametrize("fields", [FIELDS, BOUNDED], ids=["the guide's", "bounded"])
def test_curl_has_a_grammar_obeyed(demo_lane: str, image: str, fields: dict[str, Any]) -> None:
    schema: dict[str, Any] = {"properties": fields, "required": list(fields)}
    if fields is BOUNDED:
        schema["additionalProperties"] = False
    grammar = {"type": "json", "value": schema}
    answer = json.loads(curl(demo_lane, "/generate", asked(image, grammar=grammar, max_new_tokens=100)))
    seen = json.loads(answer["generated_text"])
    assert set(fields) == set(seen)
    assert 1 <= seen["animals_seen"] <= 5


@pytest.mark.client(CURL, "chat")
@pytest.mark.client(CURL, "an image in a chat")
def test_curl_chats(demo_lane: str, image: str) -> None:
    body = {"model": "tgi", "messages": conversation(image), "seed": 42, "max_tokens": 100}
    answer = json.loads(curl(demo_lane, "/v1/chat/completions", body))
    assert says(answer["choices"][0]["message"]["content"], "red", "circle")
    assert answer["model"] == MODEL


@pytest.mark.client(CURL, "chat, streamed")
def test_curl_streams_a_chat(demo_lane: str, image: str) -> None:
    body = {"model": "tgi", "messages": conversation(image), "stream": True, "max_tokens": 100}
    *events, rest = curl(demo_lane, "/v1/chat/completions", body, "-N").split("\n\n")
    assert (events[-1], rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert says("".join(c["choices"][0]["delta"].get("content") or "" for c in chunks), "red", "circle")


@pytest.mark.client(CURL, "image-to-text")
@pytest.mark.client(CURL, "questions about an image")
def test_curl_has_a_file_captioned_and_asks_about_it(demo_lane: str, tmp_path: Any) -> None:
    file = tmp_path / "circle.png"
    file.write_bytes(png("red", "circle"))
    command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--data-binary", f"@{file}", demo_lane,
               "-H", "Authorization: Bearer sa-all"]  # fmt: skip
    captioned = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert says(json.loads(captioned)[0]["generated_text"], "red", "circle")
    body = {"inputs": {"question": "What color is the circle?", "image": data_uri(png("red", "circle"))}}
    assert "red" in json.loads(curl(demo_lane, "/", body))[0]["answer"].lower()


@pytest.mark.client("huggingface_hub", "text generation, streamed")
@pytest.mark.client("huggingface_hub", "an image in a prompt")
@pytest.mark.client("huggingface_hub", "an image in a chat")
def test_the_hubs_client_shows_the_image(demo_lane: str, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this one stays on the machine
    client = InferenceClient(demo_lane, token="sa-all")
    prompt = f"![]({image}){QUESTION}\n\n"
    said = "".join(client.text_generation(prompt, max_new_tokens=16, stream=True))
    assert "red" in said.lower()
    chat = client.chat_completion(messages=conversation(image), seed=42, max_tokens=100)
    assert says(chat.choices[0].message.content, "red", "circle")


@pytest.mark.client("openai-python", "an image in a chat")
def test_openais_client_shows_the_image(demo_lane: str, image: str) -> None:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=f"{demo_lane}/v1", api_key="sa-all", http_client=http) as client:
        answer = client.chat.completions.create(model="tgi", messages=conversation(image), stream=False)
    assert says(answer.choices[0].message.content or "", "red", "circle")

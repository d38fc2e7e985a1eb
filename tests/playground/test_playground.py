"""The playground: its door, its page over the demo model's own lane, and JoyCaption's Space's call of it."""

import base64
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.access.keys import Keyring
from serve_app.config.http import ImageConfig, KeysConfig
from serve_app.families import FAMILIES
from serve_app.playground import joycaption_space
from serve_app.playground.door import Door
from serve_app.playground.fields import sampling_of, text_of
from serve_app.playground.service import Answer, Refused, Service, side_by_side
from tests.own_lane import bearer
from tests.playground_page import MAX_IMAGE_BYTES, MAX_UPLOAD_BYTES, TITLE, page_over

pytest.importorskip("gradio", reason="no Gradio here: pip install 'serve-app[playground]'")
import gradio_client
from gradio_client.exceptions import AppError

EXAMPLE, EXAMPLE_CAPTION = Path("docs/example.png").absolute(), "a red circle and a blue square"
KEY = bearer("all")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("playground")


@pytest.fixture(scope="module")
def page(demo_lane: str, folder: Path) -> Iterator[str]:
    with page_over(demo_lane, folder) as url:
        yield url


@pytest.fixture(scope="module")
def client(page: str) -> Iterator[gradio_client.Client]:
    opened = gradio_client.Client(page, headers=KEY, verbose=False)
    yield opened
    opened.close()


@contextmanager
def image_site() -> Iterator[tuple[str, list[str | None]]]:
    """The address of an image on this machine, and who has asked for it, by their `User-Agent`."""
    visitors: list[str | None] = []

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            visitors.append(self.headers["user-agent"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(EXAMPLE.read_bytes())

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing is to be printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/image.png", visitors
        server.shutdown()


# The door


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer sa-nobody"},
        {"authorization": "Basic " + base64.b64encode(b"me:sa-nobody").decode()},
        {"authorization": "Basic ???"},
        {"authorization": "Basic " + base64.b64encode(b"\xff\xfe").decode()},
        {"authorization": "Basic"},
    ],
)
@pytest.mark.parametrize("path", ["", "/", "/config", "/gradio_api/info", "/gradio_api/upload", "/assets/x.js"])
def test_nobody_comes_in_without_a_key_and_a_browser_asks_for_it(page: str, headers: Any, path: str) -> None:
    refused = httpx.get(page + path, headers=headers, trust_env=False)
    assert refused.status_code == 401
    assert refused.json()["error"]["code"] == "invalid_api_key"
    assert refused.headers["www-authenticate"].startswith("Basic realm=")


@pytest.mark.parametrize("path", ["", "/"])
def test_a_browser_comes_in_with_the_key_as_its_password(page: str, path: str) -> None:
    answer = httpx.get(page + path, auth=("anybody", "sa-all"), trust_env=False, follow_redirects=True)
    assert answer.status_code == 200
    assert answer.url.path == "/playground/"
    assert TITLE in answer.text


def test_another_sites_page_may_not_ask(page: str) -> None:
    headers = KEY | {"sec-fetch-site": "cross-site"}
    asked = httpx.post(f"{page}/gradio_api/queue/join", headers=headers, json={}, trust_env=False)
    assert asked.status_code == 403
    assert httpx.get(f"{page}/", headers=headers, trust_env=False).status_code == 200, "a link may lead here"


@pytest.mark.parametrize(
    "asked",
    [
        "GET /gradio_api/deep_link?session_hash=a", "GET /gradio_api/proxy=https://example.com", "GET /openapi.json",
        "HEAD /gradio_api/proxy=https://example.com", "GET /monitoring", "GET /monitoring/summary", "GET /logout",
        "GET /gradio_api/token", "GET /gradio_api/user", "GET /gradio_api/app_id", "GET /gradio_api/runs",
        "GET /gradio_api/dev/reload", "GET /gradio_api/vibe-code", "POST /gradio_api/vibe-edit", "POST /login",
        "POST /gradio_api/component_server", "POST /gradio_api/process_recording", "POST /gradio_api/stream/x",
        "POST /gradio_api/run/stream_chat", "POST /gradio_api/api/stream_chat", "GET /logout/",
        "GET /gradio_api/custom_component/a/b/c/d",
        "GET /gradio_api/stream/a/1/2/playlist-file", "GET /a_route_of_a_later_version", "POST /", "PUT /config",
        "POST /gradio_api/a_later_one", "DELETE /gradio_api/upload", "GET //gradio_api/proxy=https://example.com",
        "GET /gradio_api/%70roxy=https://example.com", "GET /gradio_api/call/a/b/c", "OPTIONS /config",
    ],
)  # fmt: skip
def test_routes_that_the_page_does_not_need_are_closed(page: str, asked: str) -> None:
    method, _, path = asked.partition(" ")
    answer = httpx.request(method, page + path, headers=KEY, trust_env=False)
    assert answer.status_code == 404
    if method != "HEAD":
        assert answer.json() == {"detail": "not served here"}, "by the door, before Gradio"


@pytest.mark.parametrize(
    "path", ["/", "/config", "/theme.css", "/manifest.json", "/gradio_api/info", "/gradio_api/startup-events"]
)
def test_routes_that_the_page_needs_are_open(page: str, path: str) -> None:
    for method in ("GET", "HEAD") if path == "/" else ("GET",):
        assert httpx.request(method, page + path, headers=KEY, trust_env=False).status_code == 200


async def test_a_websocket_is_closed() -> None:
    async def never(*_: Any) -> Any:
        raise AssertionError("it came in")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await Door(never, Keyring(KeysConfig()), Path(), 1)({"type": "websocket", "path": "/"}, never, send)
    assert sent == [{"type": "websocket.close"}]


def test_uploads_are_bounded_one_by_one_and_together(page: str, folder: Path) -> None:
    def upload(num_bytes: int) -> int:
        files = {"files": ("a.png", b"x" * num_bytes)}
        return httpx.post(f"{page}/gradio_api/upload", headers=KEY, files=files, trust_env=False).status_code

    assert upload(MAX_IMAGE_BYTES + 1) in (400, 413)
    (folder / "uploads/much").write_bytes(b"x" * MAX_UPLOAD_BYTES)
    try:
        assert upload(10) == 200, "as many bytes as there may be"
        assert upload(10) == 503
    finally:
        (folder / "uploads/much").unlink()
    assert upload(10) == 200


# JoyCaption's Space's call


@pytest.mark.client("gradio_client", "captions")
def test_the_well_known_snippet_works(client: gradio_client.Client) -> None:
    prompt, caption = client.predict(
        input_image=gradio_client.handle_file(str(EXAMPLE)),
        caption_type="Descriptive",
        caption_length="long",
        extra_options=[],
        name_input="",
        custom_prompt="",
        api_name="/stream_chat",
    )
    assert prompt == "Describe this picture in detail."
    assert "red circle" in caption
    assert "blue square" in caption


@pytest.mark.parametrize(
    ("arguments", "prompt"),
    [
        ({"caption_length": "very short"}, "Write a short caption for this picture."),
        ({"caption_length": "20"}, "Write a short caption for this picture."),
        ({"caption_type": "Booru-like tag list"}, "List tags for this picture, separated by commas."),
        ({"custom_prompt": "What color is the circle?"}, "What color is the circle?"),
        ({}, "Describe this picture in detail."),
    ],
)
def test_types_and_lengths_become_the_nearest_style(
    client: gradio_client.Client, arguments: dict[str, Any], prompt: str
) -> None:
    told, caption = client.predict(gradio_client.handle_file(str(EXAMPLE)), **arguments, api_name="/stream_chat")
    assert told == prompt
    assert caption


JOY = {
    "styles": [{"name": style.name} for style in FAMILIES["joycaption"].styles],
    "lengths": ["any", "short", "long"],
}
SENTENCE = "If there is a person/character in the image you must refer to them as {name}."


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (("Descriptive", "long", [], "", ""), {"style": "Descriptive", "length": "long"}),
        (("Descriptive", "any", [], "", ""), {"style": "Descriptive"}),
        (("Descriptive", "120", [], "", ""), {"style": "Descriptive", "length": 120}),
        (
            ("Straightforward", "any", [SENTENCE], " Ann ", ""),
            {"style": "Straightforward", "options": [SENTENCE], "name": "Ann"},
        ),
        (("Straightforward", "any", [], "Ann", ""), {"style": "Straightforward"}),
        (("Descriptive", "long", ["x"], "Ann", " mine "), {"prompt": " mine "}),
        (("Descriptiv", "long", [], "", ""), {"style": "Descriptiv"}),
    ],
)
def test_a_joycaption_takes_the_spaces_words_as_they_are(arguments: Any, fields: dict[str, Any]) -> None:
    assert joycaption_space.fields_of(JOY, *arguments) == fields


@pytest.mark.client("gradio_client", "errors in its own classes")
def test_what_nobody_knows_is_refused_by_its_name(client: gradio_client.Client) -> None:
    with pytest.raises(AppError, match="style 'Poem' is unknown"):
        client.predict(gradio_client.handle_file(str(EXAMPLE)), caption_type="Poem", api_name="/stream_chat")
    with pytest.raises(AppError, match="there is no image"):
        client.predict(None, api_name="/stream_chat")


def test_a_file_that_is_no_image_is_the_services_to_refuse(client: gradio_client.Client, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_text("no image")
    with pytest.raises(AppError, match="image"):
        client.predict(gradio_client.handle_file(str(tmp_path / "image.png")), api_name="/stream_chat")


# What strangers try


def test_an_images_address_is_fetched_by_the_services_gate_alone(client: gradio_client.Client) -> None:
    with image_site() as (address, visitors):
        _, caption = client.predict(
            gradio_client.handle_file(address), caption_length="short", api_name="/stream_chat"
        )
        assert caption == EXAMPLE_CAPTION
        assert visitors == [ImageConfig().user_agent]


FILE = {"meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("more", [{}, FILE], ids=["plain", "as Gradio's own"])
@pytest.mark.parametrize("key", ["path", "url"])
def test_an_address_anywhere_else_is_refused(client: gradio_client.Client, key: str, more: dict[str, Any]) -> None:
    with image_site() as (address, visitors):
        prompt = {key: address} | more
        with pytest.raises(AppError, match="takes no file from an address"):
            client.predict(gradio_client.handle_file(str(EXAMPLE)), custom_prompt=prompt, api_name="/stream_chat")
        assert not visitors


@pytest.mark.parametrize("more", [{}, FILE], ids=["plain", "as Gradio's own"])
@pytest.mark.parametrize("path", [str(EXAMPLE), "/etc/passwd", "../../../../etc/passwd", "\0", "/proc/self/environ"])
def test_files_of_this_machine_stay_here(page: str, path: str, more: dict[str, Any]) -> None:
    asked = httpx.post(
        f"{page}/gradio_api/call/stream_chat", headers=KEY, trust_env=False,
        json={"data": [{"path": path} | more, "Descriptive", "short", [], "", ""]},
    )  # fmt: skip
    assert asked.status_code == 200
    url = f"{page}/gradio_api/call/stream_chat/{asked.json()['event_id']}"
    told = httpx.get(url, headers=KEY, trust_env=False, timeout=60).text
    assert "event: error" in told
    assert "event: complete" not in told


def test_no_file_of_this_machine_is_given_out(page: str) -> None:
    for path in ("/etc/passwd", str(EXAMPLE)):
        assert httpx.get(f"{page}/gradio_api/file={path}", headers=KEY, trust_env=False).status_code == 403


# Asking the service


async def collected(answers: AsyncGenerator[Answer]) -> list[Answer]:
    return [answer async for answer in answers]


async def test_a_caption_and_a_chat_come_piece_by_piece_with_their_speed(demo_lane: str) -> None:
    service = Service(demo_lane)
    visitor = KEY["authorization"]
    *pieces, whole = await collected(service.caption(EXAMPLE.read_bytes(), {"style": "short"}, visitor))
    assert whole.text == EXAMPLE_CAPTION == pieces[-1].text
    assert len(pieces) > 1
    assert whole.prompt == "Write a short caption for this picture."
    assert whole.speed is not None
    assert whole.speed.first_token_s > 0
    assert whole.speed.num_tokens > 1
    *pieces, whole = await collected(service.chat([{"role": "user", "content": "Who are you?"}], {}, visitor))
    assert "demo model" in whole.text
    assert whole.finish_reason == "stop"
    assert [model.name for model in await service.models(visitor)] == ["script"]
    await service.close()


async def test_refusals_are_the_services_own_sentences(demo_lane: str) -> None:
    service = Service(demo_lane)
    with pytest.raises(Refused, match="API key"):
        await service.models(None)
    with pytest.raises(Refused, match="style 'poem' is unknown"):
        await collected(service.caption(EXAMPLE.read_bytes(), {"style": "poem"}, KEY["authorization"]))
    await service.close()
    nowhere = Service("http://127.0.0.1:1")
    with pytest.raises(Refused, match="doesn't answer"):
        await nowhere.styles(None, None)
    await nowhere.close()


async def test_one_failure_ends_none_of_the_answers_beside_it(demo_lane: str) -> None:
    service = Service(demo_lane)
    answers = [
        service.caption(EXAMPLE.read_bytes(), {"style": style}, KEY["authorization"]) for style in ("poem", "short")
    ]
    last: dict[int, Answer | Refused] = {index: result async for index, result in side_by_side(answers)}
    assert isinstance(last[0], Refused)
    assert isinstance(last[1], Answer)
    assert last[1].text == EXAMPLE_CAPTION
    await service.close()


# What visitors type


@pytest.mark.parametrize(
    ("typed", "sent"), [(None, None), ("", None), (" 5 ", 5), (5, 5), ("0.7", 0.7), (0.7, 0.7), ("1e-1", 0.1), (0, 0)]
)
def test_numbers_are_typed_as_text(typed: Any, sent: float | None) -> None:
    assert sampling_of(temperature=typed) == {"temperature": sent}


@pytest.mark.parametrize("typed", ["five", "1,5", "--1", {"a": 1}, "9" * 5000, "nan", "-inf", "1e999"])
def test_what_is_no_number_is_said(typed: Any) -> None:
    with pytest.raises(Refused, match=r"max_tokens: .* is no number"):
        sampling_of(max_tokens=typed)


def test_what_is_no_text_is_said() -> None:
    assert text_of(None) == text_of("  ") == ""
    with pytest.raises(Refused, match="a text is wanted"):
        text_of({"path": "x"})

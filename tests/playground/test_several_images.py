"""The tab of several images, over a fake of the service: entries, bounds, whose key it is, and who ends what."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from starlette.responses import JSONResponse, StreamingResponse

from serve_app.gallery.page import Entry
from serve_app.playground import several_images
from serve_app.playground.service import Refused, Service
from serve_app.playground.several_images import MAX_IMAGES, SeveralImages, chosen_files
from serve_app.playground.thumbnails import Thumbnails
from tests import own_answers
from tests.chromium import chromium
from tests.cli_fake import FakeApi, failure, serving
from tests.gallery.test_page import HOSTILE, tags
from tests.own_lane import bearer
from tests.playground_page import page_over
from tests.waiting import until

pytest.importorskip("gradio", reason="no Gradio here: pip install 'serve-app[playground]'")
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from serve_app.playground.several_images_tab import _frame

VISITOR = bearer("all")["authorization"]
THUMBNAILS = Thumbnails(1_000_000)


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
def url(api: FakeApi) -> Iterator[str]:
    with serving(api) as address:
        yield address


def uploads(folder: Path, **contents: bytes) -> list[dict[str, Any]]:
    """Files as Gradio describes them, each by its name."""
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [{"path": str(folder / name), "orig_name": f"{name}.png"} for name in contents]


def png(color: str, size: tuple[int, int] = (640, 480)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


async def all_entries(url: str, files: list[dict[str, Any]], **fields: Any) -> list[Entry | None]:
    service = Service(url)
    *_, last = [entries async for entries in SeveralImages(service, THUMBNAILS, fields, VISITOR).entries(files)]
    await service.close()
    return last


async def test_each_image_has_its_caption_or_its_reason(api: FakeApi, url: str, tmp_path: Path) -> None:
    api.fault = lambda content, _: failure(400, "invalid_image", "image: no image") if content == "bad" else None
    files = uploads(tmp_path, a=b"a", bad=b"bad", red=png("red"))
    files.append({"path": str(tmp_path / "gone"), "orig_name": "gone.png"})
    a, bad, red, gone = await all_entries(url, files, model="m", guard=True)
    assert a == Entry("a.png", "caption of a")
    assert bad == Entry("bad.png", error="image: no image")
    assert gone == Entry("gone.png", error="this image isn't kept any more: upload it again")
    assert red is not None
    assert red.thumbnail is not None
    assert Image.open(BytesIO(red.thumbnail)).size == (320, 240)
    assert {headers["authorization"] for headers in api.headers} == {VISITOR}
    assert api.forms == [{"model": "m", "guard": "true"}] * 3


async def test_what_the_guard_found_stands_beside_its_image(api: FakeApi, url: str, tmp_path: Path) -> None:
    guarded = own_answers.caption_answer("an odd caption")
    guarded["data"][0]["guard"] = {"findings": ["loop"]}
    api.fault = lambda content, _: JSONResponse(
        guarded if content == "a" else own_answers.caption_answer("This image shows a sea")
    )
    a, b = await all_entries(url, uploads(tmp_path, a=b"a", b=b"b"))
    assert a == Entry("a.png", "an odd caption", findings=("loop",))
    assert b == Entry("b.png", "This image shows a sea", findings=("meta_phrase",))


@pytest.mark.parametrize("answer", [{}, {"data": []}, {"data": [{}]}, {"data": [{"caption": 1}]}, {"data": 1}])
async def test_an_answer_without_a_caption_is_refused(
    api: FakeApi, url: str, tmp_path: Path, answer: dict[str, Any]
) -> None:
    api.fault = lambda content, _: JSONResponse(answer)
    (entry,) = await all_entries(url, uploads(tmp_path, a=b"a"))
    assert entry == Entry("a.png", error="the service's answer holds no caption: try again")


@pytest.mark.parametrize(
    ("name", "shown"),
    [("  two\nlines ", "two lines"), (None, "a"), ({"a": 1}, "a"), ("x" * 999, "x" * 200), ("\udcff", "?")],
)
async def test_any_name_is_one_line_of_text(url: str, tmp_path: Path, name: Any, shown: str) -> None:
    files = uploads(tmp_path, a=b"a")
    files[0]["orig_name"] = name
    assert await all_entries(url, files) == [Entry(shown, "caption of a")]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (None, "there are no images"),
        ([], "there are no images"),
        ("x", "images are wanted"),
        ([{"path": None}], "images are wanted"),
        (["x"], "images are wanted"),
        ([{"path": "/x"}] * (MAX_IMAGES + 1), "33 images are more than 32"),
    ],
)
def test_too_much_or_something_else_is_refused(files: Any, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        chosen_files(files)


def test_many_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = uploads(tmp_path, a=b"12345", b=b"12345")
    monkeypatch.setattr(several_images, "MAX_BYTES", 10)
    assert chosen_files(files) == files
    monkeypatch.setattr(several_images, "MAX_BYTES", 9)
    with pytest.raises(Refused, match="MB together"):
        chosen_files(files)


# Leaving


class Silence:
    """A service that never answers, and counts who waits."""

    url = ""

    def __init__(self) -> None:
        self.num_waiting = self.num_ever = 0
        self._changed = asyncio.Condition()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_ever += 1
        await self._change(1)
        while await reader.read(65_536):
            pass
        await self._change(-1)
        writer.close()

    async def count(self, number: int) -> None:
        """Wait until so many wait."""
        async with asyncio.timeout(20), self._changed:
            await self._changed.wait_for(lambda: self.num_waiting == number)

    async def _change(self, by: int) -> None:
        async with self._changed:
            self.num_waiting += by
            self._changed.notify_all()


@asynccontextmanager
async def silent_service() -> AsyncIterator[Silence]:
    silence = Silence()
    async with await asyncio.start_server(silence.answer, "127.0.0.1", 0) as server:
        silence.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield silence


async def test_few_requests_run_at_once_and_closing_ends_them(tmp_path: Path) -> None:
    files = uploads(tmp_path, **{f"image-{number}": b"x" for number in range(8)})
    async with silent_service() as silence:
        service = Service(silence.url)
        async with aclosing(SeveralImages(service, THUMBNAILS, {}, VISITOR).entries(files)) as entries:
            assert await anext(entries) == [None] * 8, "it goes on while nothing comes"
            await silence.count(4)
        await silence.count(0)
        assert silence.num_ever == 4
        await service.close()


async def test_a_visitor_who_leaves_ends_the_requests(tmp_path: Path) -> None:
    async with silent_service() as silence:
        with page_over(silence.url, tmp_path) as page:
            async with httpx.AsyncClient(headers=bearer("all"), trust_env=False, timeout=60) as client:
                upload = await client.post(f"{page}/gradio_api/upload", files={"files": ("a.png", b"a")})
                await _click(client, page, [{"path": path, "orig_name": "a.png"} for path in upload.json()])
                async with client.stream("GET", f"{page}/gradio_api/queue/data?session_hash=s"):
                    await silence.count(1)
                await silence.count(0)


@pytest.mark.parametrize(
    "file",
    [{"path": "/etc/passwd"}, {"path": "http://127.0.0.1/a.png"}, {"path": "", "url": "http://127.0.0.1/a.png"}],
)
async def test_neither_this_machines_files_nor_addresses_are_taken(
    api: FakeApi, url: str, tmp_path: Path, file: dict[str, Any]
) -> None:
    with page_over(url, tmp_path) as page:
        async with httpx.AsyncClient(headers=bearer("all"), trust_env=False, timeout=60) as client:
            await _click(client, page, [file])
            answer = await client.get(f"{page}/gradio_api/queue/data?session_hash=s")
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line]
    assert [event["success"] for event in events if event["msg"] == "process_completed"] == [False]
    assert not api.seen


async def _click(client: httpx.AsyncClient, page: str, files: list[dict[str, Any]]) -> None:
    """What the page sends when its button is clicked."""
    config = (await client.get(f"{page}/config")).json()
    (button,) = [c["id"] for c in config["components"] if c["props"].get("elem_id") == "several-button"]
    (call,) = [d["id"] for d in config["dependencies"] if [button, "click"] in d["targets"]]
    images = [file | {"meta": {"_type": "gradio.FileData"}} for file in files]
    body = {"data": [images, "m", "short", "any", [], "", False], "fn_index": call, "session_hash": "s"}
    joined = await client.post(f"{page}/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text


# The gallery in its frame


def test_no_text_leaves_the_frame() -> None:
    frame = _frame(f"<p>{HOSTILE}\"'></iframe>")
    ((tag, attributes),) = tags(frame)
    assert tag == "iframe"
    assert attributes["srcdoc"] == f"<p>{HOSTILE}\"'></iframe>"
    assert attributes["sandbox"] == "allow-scripts"


def test_a_browser_shows_hostile_texts_as_texts_and_stops_when_told(api: FakeApi, url: str, tmp_path: Path) -> None:
    caption = HOSTILE + " ${alert(1)} {{value}}"
    name = "<img src=x onerror=alert(1)>.png"
    api.gets["/v1/models"] = JSONResponse(own_answers.models())

    def answer(content: str, _: int) -> Any:
        if content == "slow":
            return StreamingResponse(never())
        return JSONResponse(own_answers.caption_answer(caption))

    async def never() -> AsyncIterator[bytes]:
        await asyncio.sleep(60)
        yield b""

    api.fault = answer
    (tmp_path / name).write_bytes(png("red"))
    (tmp_path / "slow.png").write_bytes(b"slow")
    with page_over(url, tmp_path) as page, chromium() as browser:
        browser.get(page.replace("://", "://anybody:sa-all@") + "/")
        browser.get(f"{page}/")

        def element(selector: str) -> WebElement:
            return browser.find_element(By.CSS_SELECTOR, selector)

        until(lambda: element("button[role=tab]:nth-of-type(4)"), "the fourth tab").click()
        field = until(lambda: element("#several-images input[type=file]"), "the field for files")
        field.send_keys(f"{tmp_path / name}\n{tmp_path / 'slow.png'}")
        until(lambda: "slow" in element("#several-images").text, "the files to be uploaded")
        element("#several-button").click()
        until(lambda: "1 of 2" in element("#several-progress").text, "the first caption")
        element("#several-stop").click()
        frame = until(lambda: element("#several-gallery iframe"), "the gallery of what came")
        browser.switch_to.frame(frame)
        (card,) = browser.find_elements(By.TAG_NAME, "article")
        assert card.find_element(By.CLASS_NAME, "file").text == name
        assert card.find_element(By.TAG_NAME, "button").get_attribute("textContent") == caption
        assert len(browser.find_elements(By.TAG_NAME, "img")) == 1

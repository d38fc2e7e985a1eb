"""`serve-app gallery`: the page of a run, in a real Chromium from disk."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.support.select import Select
from starlette.responses import JSONResponse

from tests import own_answers
from tests.chromium import chromium
from tests.cli_fake import FakeApi, failure, run

pytestmark = pytest.mark.engine


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    value: dict[str, Any] = json.loads(found[1])
    return value


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name, color in (("a.png", "red"), ("sub/b.jpg", "blue"), ("c.png", "green")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (640, 480), color).save(tmp_path / "in" / name)
    (tmp_path / "in/bad.jpg").write_text("no image")
    return tmp_path


def captioned(api: FakeApi, url: str, folder: Path, output: str) -> None:
    texts = iter(["a red </script><b>field", "This image shows a sea", "a green field"])
    cut = own_answers.caption_answer("a green field in the")
    cut["data"][0]["finish_reason"] = "length"

    def answer(content: str, _: int) -> Any:
        if content == "no image":
            return failure(400, "invalid_image", "this looks like text")
        text = next(texts)
        return JSONResponse(cut if "green" in text else own_answers.caption_answer(text))

    api.fault = answer
    run("caption", "in/a.png", "in/sub/b.jpg", "in/c.png", "in/bad.jpg", "-o", output, "--concurrency", "1",
        url=url, cwd=folder)  # fmt: skip


@pytest.mark.parametrize("output", ["o.jsonl", "o.csv", "txt"])
def test_the_page_holds_captions_findings_failures_and_thumbnails(
    api: FakeApi, url: str, images: Path, output: str
) -> None:
    captioned(api, url, images, output)
    done = run("gallery", "in" if output == "txt" else output, "-o", "page.html", url=url, cwd=images)
    assert (done.returncode, done.stdout) == (0, b"page.html: 4 images\n"), done.stderr
    rows = {Path(row["file"]).name: row for row in data_of(images / "page.html")["rows"]}
    assert rows["a.png"]["caption"] == "a red </script><b>field"
    assert rows["b.jpg"]["findings"] == ["meta_phrase"]
    assert rows["c.png"]["findings"] == ["truncated"]
    assert rows["bad.jpg"]["error"] == "invalid_image: this looks like text"
    assert rows["bad.jpg"]["caption"] is rows["bad.jpg"]["thumbnail"] is None
    assert all(rows[name]["thumbnail"].startswith("data:image/jpeg;base64,") for name in ("a.png", "b.jpg", "c.png"))


def test_a_corrected_text_is_shown_as_it_is_now(api: FakeApi, url: str, images: Path) -> None:
    captioned(api, url, images, "txt")
    (images / "in/a.txt").write_text("corrected by hand\n")
    assert run("gallery", "in", url=url, cwd=images).returncode == 0
    assert "corrected by hand" in {row["caption"] for row in data_of(images / "in/gallery.html")["rows"]}


def test_the_latest_row_counts_and_a_limit_is_told(api: FakeApi, url: str, images: Path) -> None:
    captioned(api, url, images, "o.jsonl")
    done = run("gallery", "o.jsonl", "--limit", "2", url=url, cwd=images)
    assert done.stdout == b"o.jsonl.html: 2 images of 4: a larger --limit shows the rest\n"
    assert data_of(images / "o.jsonl.html")["title"] == "o.jsonl: 2 of 4 images"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("gone.jsonl", "can't be read"),
        ("notes.txt", "holds something else"),
        ("in", "has no serve-app-captions.jsonl"),
    ],
)
def test_mistakes_are_named(url: str, images: Path, name: str, sentence: str) -> None:
    (images / "notes.txt").write_text("my notes")
    done = run("gallery", name, url=url, cwd=images)
    assert (done.returncode, sentence in done.stderr.decode()) == (2, True), done.stderr


@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_filters_and_searches_it(api: FakeApi, url: str, images: Path, width: int) -> None:
    captioned(api, url, images, "o.jsonl")
    run("gallery", "o.jsonl", url=url, cwd=images)
    with chromium(width) as driver:
        driver.get(f"file://{images}/o.jsonl.html")

        def shown() -> list[str]:
            cards = driver.find_elements(By.TAG_NAME, "article")
            return [card.find_element(By.CLASS_NAME, "file").text for card in cards if card.is_displayed()]

        assert len(shown()) == 4
        assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        loaded = driver.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert loaded
        choice = Select(driver.find_element(By.ID, "kind"))
        assert [option.text for option in choice.options] == [
            "all (4)", "failed (1)", "meta_phrase (1)", "truncated (1)",
        ]  # fmt: skip
        choice.select_by_value("failed")
        assert shown() == ["in/bad.jpg"]
        choice.select_by_value("all")
        driver.find_element(By.ID, "text").send_keys("SEA")
        assert shown() == ["in/sub/b.jpg"]
        button = next(b for b in driver.find_elements(By.TAG_NAME, "button") if b.is_displayed())
        button.click()
        assert "copied" in (button.get_attribute("class") or "")
        driver.find_element(By.ID, "text").clear()

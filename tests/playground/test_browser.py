"""The playground as people meet it: `serve-app up --playground`, Chromium without a window, and Gradio's client.

`KEEP_SCREENSHOT=1` puts the image of the page where the README shows it.
"""

import base64
import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.chromium import chromium
from tests.conftest import CONFIG
from tests.drawings import png
from tests.own_lane import MODEL
from tests.playground_page import page_over
from tests.service import RunningService, serving
from tests.waiting import until

pytest.importorskip("gradio", reason="no Gradio here: pip install 'serve-app[playground]'")
import gradio_client
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

ROOT = Path(__file__).parent.parent.parent
EXAMPLE, EXAMPLE_CAPTION = ROOT / "docs/example.png", "a red circle and a blue square"
PACE = 3  # tokens a second of the scripted captioner: slow enough to be seen writing

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def playground() -> Iterator[RunningService]:
    demo, script, ingress, metrics = CONFIG["applications"]
    slow = {"tokens_per_s": PACE, "tokens": 30, "takes_images": True}
    writer = {**script, "name": "writer", "route_prefix": None}
    writer["args"] = {**script["args"], "tasks": ["caption"], "engine_args": slow}
    names = {"name": "Ingress", "user_config": {"models": ["demo", "writer"]}}
    applications = [demo, writer, {**ingress, "deployments": [names]}, metrics]
    with serving({**CONFIG, "applications": applications}, options=["--playground"]) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Chrome, playground: RunningService) -> Chrome:
    browser.get(f"{playground.url}/playground")
    until(lambda: "demo" in value_of(browser, "#caption-model input"), "the models to be listed")
    return browser


def element(browser: Chrome, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def value_of(browser: Chrome, selector: str) -> str:
    return element(browser, selector).get_attribute("value") or ""


def drop(browser: Chrome, selector: str, image: bytes, name: str = "image.png") -> None:
    """What a browser tells a page when a file is dropped on it."""
    browser.execute_script(
        """
        const [zone, data, name] = arguments;
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        const dropped = new DataTransfer();
        dropped.items.add(new File([bytes], name, {type: "image/png"}));
        for (const kind of ["dragenter", "dragover", "drop"])
            zone.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: dropped}));
        """,
        until(lambda: element(browser, selector), selector),
        base64.b64encode(image).decode(),
        name,
    )


def watch(browser: Chrome, selector: str) -> None:
    """Note every text that the field shows from now on."""
    browser.execute_script(
        """
        const [selector] = arguments;
        window.seen = [];
        clearInterval(window.watching);
        window.watching = setInterval(() => {
            const text = document.querySelector(selector).value;
            if (window.seen.at(-1) !== text) window.seen.push(text);
        }, 20);
        """,
        selector,
    )


def test_a_dropped_image_is_captioned(page: Chrome, tmp_path: Path) -> None:
    drop(page, "#caption-image button", EXAMPLE.read_bytes())
    until(lambda: element(page, "#caption-image img"), "the image to be shown")
    element(page, "#caption-button").click()
    until(lambda: value_of(page, "#caption-prompt textarea"), "the caption's end")
    assert value_of(page, "#caption textarea") == EXAMPLE_CAPTION
    assert value_of(page, "#caption-prompt textarea") == "Write a short caption for this picture."
    told = element(page, "#caption-speed").text
    assert "first after" in told
    assert "tokens/s" in told
    image = tmp_path / "playground.png"
    page.save_screenshot(str(image))
    assert image.stat().st_size > 10_000
    if os.environ.get("KEEP_SCREENSHOT") == "1":
        shutil.copy(image, ROOT / "docs/playground.png")


def test_models_write_side_by_side_and_one_is_seen_writing(page: Chrome) -> None:
    until(lambda: element(page, "button[role=tab]:nth-of-type(3)"), "the third tab").click()
    drop(page, "#compare-image button", png("red", "circle"))
    until(lambda: element(page, "#compare-image img"), "the image to be shown")
    watch(page, "#compare-1 textarea")
    element(page, "#compare-button").click()
    until(lambda: "tokens/s" in element(page, "#compare-speed-1").text, "the slow model's end")
    assert "red circle" in value_of(page, "#compare-0 textarea")
    seen: list[str] = [text for text in page.execute_script("return window.seen") if text]
    assert len(seen) > 1, "it is written piece by piece"
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))


def test_a_chat_with_an_image(page: Chrome) -> None:
    until(lambda: element(page, "button[role=tab]:nth-of-type(2)"), "the second tab").click()
    box = until(lambda: element(page, "#chat-message textarea"), "the message's field")
    drop(page, "#chat-message [role=group]", EXAMPLE.read_bytes())
    until(lambda: element(page, "#chat-message img"), "the image to be shown")
    box.send_keys("What color is the circle?\n")
    until(lambda: "first after" in element(page, "#chat-speed").text, "the answer's end")
    assert "red" in element(page, "#chat").text


def test_several_images_become_a_gallery_to_download(page: Chrome, tmp_path: Path) -> None:
    (tmp_path / "circle.png").write_bytes(png("red", "circle"))
    (tmp_path / "broken.png").write_bytes(b"no image")
    shutil.copy(EXAMPLE, tmp_path / "example.png")
    until(lambda: element(page, "button[role=tab]:nth-of-type(4)"), "the fourth tab").click()
    field = until(lambda: element(page, "#several-images input[type=file]"), "the field for files")
    field.send_keys("\n".join(str(tmp_path / name) for name in ("example.png", "broken.png", "circle.png")))
    until(lambda: "circle" in element(page, "#several-images").text, "the files to be uploaded")
    element(page, "#several-button").click()
    frame = until(lambda: element(page, "#several-gallery iframe"), "the gallery")
    assert "3 of 3 · 1 failed" in element(page, "#several-progress").text
    assert f"example.png: {EXAMPLE_CAPTION}" in value_of(page, "#several-captions textarea")
    page.switch_to.frame(frame)
    example, broken, circle = page.find_elements(By.TAG_NAME, "article")
    assert EXAMPLE_CAPTION in example.text
    assert "red circle" in circle.text
    assert "this looks like text" in broken.text
    until(
        lambda: page.execute_script("return [...document.images].filter((i) => i.naturalWidth > 0).length") == 2,
        "the thumbnails of those that are images",
    )
    page.switch_to.default_content()
    (tmp_path / "downloads").mkdir()
    folder = {"behavior": "allow", "downloadPath": str(tmp_path / "downloads")}
    page.execute_cdp_cmd("Browser.setDownloadBehavior", folder)
    document = element(page, "#several-gallery iframe").get_attribute("srcdoc")
    element(page, "#several-download").click()
    saved = tmp_path / "downloads/gallery.html"
    until(lambda: saved.read_text() == document, "the download")
    page.get(f"file://{saved}")
    assert len(page.find_elements(By.TAG_NAME, "article")) == 3


def test_what_is_refused_is_said(page: Chrome) -> None:
    element(page, "#caption-button").click()
    until(lambda: "there is no image" in element(page, "body").text, "the sentence")
    drop(page, "#caption-image button", b"no image")
    until(lambda: element(page, "#caption-image img"), "the file to be taken")
    element(page, "#caption-button").click()
    until(lambda: "image:" in element(page, "body").text, "the service's sentence")


def test_with_keys_the_browser_sends_its_users_with_everything(
    browser: Chrome, demo_lane: str, tmp_path: Path
) -> None:
    with page_over(demo_lane, tmp_path) as url:
        browser.get(url.replace("://", "://anybody:sa-all@") + "/")  # as its user would type it where it asks
        browser.get(f"{url}/")
        until(lambda: MODEL in value_of(browser, "#caption-model input"), "the models to be listed")
        drop(browser, "#caption-image button", EXAMPLE.read_bytes())
        until(lambda: element(browser, "#caption-image img"), "the image to be shown")
        element(browser, "#caption-button").click()
        until(lambda: value_of(browser, "#caption-prompt textarea"), "the caption's end")
        assert value_of(browser, "#caption textarea") == EXAMPLE_CAPTION


def test_the_well_known_snippet_works_through_the_service(playground: RunningService) -> None:
    client = gradio_client.Client(f"{playground.url}/playground", verbose=False)
    arguments: dict[str, Any] = {"caption_type": "Descriptive", "caption_length": "short", "extra_options": []}
    prompt, caption = client.predict(
        input_image=gradio_client.handle_file(str(EXAMPLE)),
        **arguments, name_input="", custom_prompt="", api_name="/stream_chat",
    )  # fmt: skip
    client.close()
    assert (prompt, caption) == ("Write a short caption for this picture.", EXAMPLE_CAPTION)


def test_its_requests_are_counted_like_anybodys(playground: RunningService) -> None:
    with playground.client as client:
        until(lambda: "demo" in client.get("/metrics/summary").json()["models"], "the metrics")

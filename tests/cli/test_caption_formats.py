"""HEIC and JPEG XL in `serve-app caption`: sent as they are, and as JPEGs to a service that can't read them."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.responses import Response

from serve_app.cli.captioning import shrink
from serve_app.images import formats
from tests.cli_fake import FakeApi, failure, run

pytest.importorskip("pillow_heif")
pytest.importorskip("pillow_jxl")

from tests.heif_files import heic
from tests.jxl_files import jxl

SENTENCE = "this looks like HEIC: JPEG, PNG and WEBP are taken"
each_format = pytest.mark.parametrize(("name", "saver"), [("a.HEIC", heic), ("a.jxl", jxl), ("a.part", heic)])


@pytest.fixture
def sent(api: FakeApi) -> list[bytes]:
    """The images that came, of which the service reads JPEG alone."""
    images: list[bytes] = []
    api.sees_image = images.append

    def refuse(content: str, num_times: int) -> Response | None:
        return None if images[-1].startswith(b"\xff\xd8\xff") else failure(400, "invalid_image", SENTENCE, "image")

    api.fault = refuse
    return images


@pytest.mark.engine
@each_format
def test_a_service_that_reads_it_gets_it_as_it_is(
    api: FakeApi, url: str, tmp_path: Path, sent: list[bytes], name: str, saver: Callable[..., bytes]
) -> None:
    api.fault = lambda content, num_times: None
    data = saver(Image.new("RGB", (64, 32), "red"))
    (tmp_path / name).write_bytes(data)
    assert run("caption", ".", url=url, cwd=tmp_path).returncode == 0
    assert sent == [data]


@pytest.mark.engine
@each_format
def test_a_service_that_cant_read_it_gets_a_jpeg(
    api: FakeApi, url: str, tmp_path: Path, sent: list[bytes], name: str, saver: Callable[..., bytes]
) -> None:
    (tmp_path / name).write_bytes(saver(Image.new("RGB", (4000, 32), "red")))
    done = run("caption", ".", url=url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(sent) == 2
    with Image.open(BytesIO(sent[1])) as image:
        assert (image.format, image.size) == ("JPEG", (3072, 25))


@pytest.mark.engine
def test_a_broken_file_keeps_the_services_sentence(api: FakeApi, url: str, tmp_path: Path, sent: list[bytes]) -> None:
    (tmp_path / "a.heic").write_bytes(heic(Image.new("RGB", (64, 32)))[:200])
    done = run("caption", ".", "-o", "o.jsonl", url=url, cwd=tmp_path)
    assert done.returncode == 1
    assert SENTENCE in (tmp_path / "o.jsonl").read_text()
    assert "pip install" not in (tmp_path / "o.jsonl").read_text()


@pytest.mark.parametrize("saver", [heic, jxl])
def test_the_hint_names_the_extra_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch, saver: Callable[..., bytes]
) -> None:
    data = saver(Image.new("RGB", (64, 32)))
    assert shrink.readable(data)[1] == ""
    monkeypatch.setattr(formats, "find_spec", lambda library: None)
    made, hint = shrink.readable(data)
    assert made is None
    assert "pip install 'serve-app[images]'" in hint
    assert shrink.readable(b"\xff\xd8\xff") == (None, "")


@pytest.mark.parametrize("saver", [heic, jxl])
def test_thumbnails_show_both(saver: Callable[..., bytes]) -> None:
    data: Any = shrink.jpeg(saver(Image.new("RGB", (640, 320), "red")), 64, 80)
    with Image.open(BytesIO(data)) as image:
        assert image.size == (64, 32)

"""HEIC and JPEG XL in `serve-app caption`: sent as they are, and as JPEGs to a service that doesn't take them."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.responses import JSONResponse

from serve_app.cli.captioning import shrink
from serve_app.images import formats
from tests.cli_fake import FakeApi, run

pytest.importorskip("pillow_heif")
pytest.importorskip("pillow_jxl")

from tests.heif_files import heic
from tests.jxl_files import jxl

each_format = pytest.mark.parametrize(("name", "saver"), [("a.HEIC", heic), ("a.jxl", jxl), ("a.part", heic)])


@pytest.fixture
def sent(api: FakeApi) -> list[bytes]:
    """The images that came."""
    images: list[bytes] = []
    api.sees_image = images.append
    return images


@pytest.mark.engine
@each_format
def test_a_service_that_takes_it_gets_it_as_it_is(
    api: FakeApi, url: str, tmp_path: Path, sent: list[bytes], name: str, saver: Callable[..., bytes]
) -> None:
    api.gets["/v1/captions/styles"] = JSONResponse({"image_formats": ["JPEG", "HEIC", "JPEG XL"]})
    data = saver(Image.new("RGB", (64, 32), "red"))
    (tmp_path / name).write_bytes(data)
    assert run("caption", ".", url=url, cwd=tmp_path).returncode == 0
    assert sent == [data]


@pytest.mark.engine
@pytest.mark.parametrize("formats", [["JPEG"], None])
@each_format
def test_a_service_that_does_not_say_so_gets_a_jpeg(
    api: FakeApi, url: str, tmp_path: Path, sent: list[bytes], name: str, saver: Callable[..., bytes],
    formats: list[str] | None,
) -> None:  # fmt: skip
    if formats:
        api.gets["/v1/captions/styles"] = JSONResponse({"image_formats": formats})
    (tmp_path / name).write_bytes(saver(Image.new("RGB", (4000, 32), "red")))
    done = run("caption", ".", url=url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (data,) = sent
    with Image.open(BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (3072, 25))


@pytest.mark.engine
def test_a_broken_file_is_a_failure(api: FakeApi, url: str, tmp_path: Path, sent: list[bytes]) -> None:
    (tmp_path / "a.heic").write_bytes(heic(Image.new("RGB", (64, 32)))[:200])
    done = run("caption", ".", "-o", "o.jsonl", url=url, cwd=tmp_path)
    assert done.returncode == 1
    assert "the HEIC is broken or cut short" in (tmp_path / "o.jsonl").read_text()
    assert not sent


@pytest.mark.parametrize("saver", [heic, jxl])
def test_the_reason_names_the_extra_where_it_is_missing(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, saver: Callable[..., bytes]
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda library: None)
    formats.extra_formats.cache_clear()
    request.addfinalizer(formats.extra_formats.cache_clear)
    made, reason = shrink.as_jpeg(saver(Image.new("RGB", (64, 32))))
    assert made is None
    assert "install 'serve-app[images]'" in reason


@pytest.mark.parametrize("saver", [heic, jxl])
def test_thumbnails_show_both(saver: Callable[..., bytes]) -> None:
    data: Any = shrink.jpeg(saver(Image.new("RGB", (640, 320), "red")), 64, 80)
    with Image.open(BytesIO(data)) as image:
        assert image.size == (64, 32)

"""The image gate: what is taken and how it is made plain, what is refused and in which words."""

import asyncio
import base64
import io
import math
import random
import struct
import threading
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Any, cast
from urllib.parse import quote_from_bytes

import pytest
from PIL import Image, ImageCms, TiffImagePlugin, features

from serve_app.config.http import ImageConfig
from serve_app.errors import ImageTooLarge, ImageUrlRefused, InvalidImage, RequestError
from serve_app.images.formats import FORMATS
from serve_app.images.gate import ImageBase64, ImageBytes, ImageGate, ImageSource, ImageUrl, source_from_text
from serve_app.messages import RgbImage
from tests.drawings import b64, data_uri, png

RED = (255, 0, 0)
WHITE = (255, 255, 255)
PNG = png("red", "circle", (40, 30))


@pytest.fixture
async def gate() -> AsyncIterator[ImageGate]:
    gate = ImageGate(ImageConfig(max_edge_px=512, max_image_bytes=2_000_000, max_image_pixels=4_000_000))
    yield gate
    await gate.close()


async def load(source: ImageSource | bytes, **values: Any) -> RgbImage:
    """Through a gate of its own, with these config values."""
    gate = ImageGate(ImageConfig(**values))
    try:
        return await gate.load(ImageBytes(source) if isinstance(source, bytes) else source, "images[3]")
    finally:
        await gate.close()


def save(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def pixel(image: RgbImage, x: int = 0, y: int = 0) -> tuple[int, int, int]:
    start = (y * image.width + x) * 3
    return cast(tuple[int, int, int], tuple(image.rgb[start : start + 3]))


def is_near(color: tuple[int, ...], wanted: tuple[int, ...], tolerance: int = 12) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(color, wanted, strict=True))


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header claims these edges, with next to no data behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


# --- what is taken


@pytest.mark.parametrize("image_format", FORMATS)
async def test_every_format(image_format: str) -> None:
    image = await load(save(Image.new("RGB", (30, 20), RED), image_format))
    assert (image.width, image.height, len(image.rgb)) == (30, 20, 30 * 20 * 3)
    assert is_near(pixel(image, 15, 10), RED)


def test_avif_is_taken_where_pillow_has_it() -> None:
    assert ("AVIF" in FORMATS) == features.check("avif")


SOURCES: dict[str, ImageSource] = {
    "bytes": ImageBytes(PNG),
    "base64": ImageBase64(b64(PNG)),
    "base64 in lines": ImageBase64("\r\n".join(base64.encodebytes(PNG).decode().split("\n"))),
    "base64 without padding": ImageBase64(b64(PNG + b"\0").rstrip("=")),
    "base64 for URLs": ImageBase64(base64.urlsafe_b64encode(PNG).decode()),
    "data URI": ImageUrl(data_uri(PNG)),
    "data URI, wrong type": ImageUrl(data_uri(PNG, "image/jpeg")),
    "data URI, no type": ImageUrl(f"data:;base64,{b64(PNG)}"),
    "data URI, parameters": ImageUrl(f"data:image/png;charset=utf-8;name=a.png;base64,{b64(PNG)}"),
    "data URI, loud": ImageUrl(f" DATA:image/png;BASE64,{b64(PNG)}\n"),
    "data URI, percent": ImageUrl(f"data:image/png,{quote_from_bytes(PNG)}"),
    "data URI, percent and base64": ImageUrl(f"data:image/png;base64,{quote_from_bytes(b64(PNG).encode(), safe='')}"),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=list(SOURCES))
async def test_every_source_is_the_same_image(source: ImageSource) -> None:
    assert await load(source) == await load(PNG)


def test_a_string_with_a_scheme_is_an_address() -> None:
    assert source_from_text("https://a/b.png") == ImageUrl("https://a/b.png")
    assert source_from_text("data:,x") == ImageUrl("data:,x")
    assert source_from_text("ftp://a/b") == ImageUrl("ftp://a/b")
    assert source_from_text(b64(PNG)) == ImageBase64(b64(PNG))


def test_sources_keep_their_content_out_of_logs() -> None:
    assert "secret" not in repr([ImageUrl("http://a/?secret"), ImageBytes(b"secret"), ImageBase64("secret")])


def modes() -> dict[str, tuple[bytes, tuple[int, int, int]]]:
    """Files in every pixel mode, and the colour that must come out at the top left on a (0, 0, 200) background."""
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, *RED])
    deep = Image.new("I;16", (8, 8), 32768)
    return {
        "1": (save(Image.new("1", (8, 8), 1)), WHITE),
        "L": (save(Image.new("L", (8, 8), 100)), (100, 100, 100)),
        "LA": (save(Image.new("LA", (8, 8), (100, 0))), (0, 0, 200)),
        "P": (save(palette), RED),
        "P, transparent": (save(palette, transparency=1), (0, 0, 200)),
        "P, half transparent": (save(palette, transparency=b"\xff\x80"), (128, 0, 100)),
        "GIF, transparent": (save(palette, "GIF", transparency=1), (0, 0, 200)),
        "RGB, one colour transparent": (save(Image.new("RGB", (8, 8), RED), transparency=RED), (0, 0, 200)),
        "L, one gray transparent": (save(Image.new("L", (8, 8), 7), transparency=7), (0, 0, 200)),
        "RGBA": (save(Image.new("RGBA", (8, 8), (255, 0, 0, 128))), (128, 0, 100)),
        "WEBP, transparent": (save(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "WEBP"), (0, 0, 200)),
        "CMYK JPEG": (save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), RED),
        "CMYK TIFF": (save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), RED),
        "LAB TIFF": (save(Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF"), WHITE),
        "YCbCr TIFF": (save(Image.new("YCbCr", (8, 8), (76, 85, 255)), "TIFF"), RED),
        "16-bit PNG": (save(deep), (128, 128, 128)),
        "16-bit TIFF": (save(deep, "TIFF"), (128, 128, 128)),
        "16-bit white": (save(Image.new("I;16", (8, 8), 65535)), WHITE),
        "16-bit dark": (save(Image.new("I;16", (8, 8), 300)), (1, 1, 1)),
        "32-bit TIFF, 8 used": (save(Image.new("I", (8, 8), 200), "TIFF"), (200, 200, 200)),
        "32-bit TIFF, 16 used": (save(Image.new("I", (8, 8), 65535), "TIFF"), WHITE),
        "float TIFF to 1": (save(Image.new("F", (8, 8), 0.5), "TIFF"), (128, 128, 128)),
        "float TIFF to 255": (save(Image.new("F", (8, 8), 200.0), "TIFF"), (200, 200, 200)),
        "float TIFF to 65535": (save(Image.new("F", (8, 8), 65535.0), "TIFF"), WHITE),
        "float TIFF without a value": (save(Image.new("F", (8, 8), math.nan), "TIFF"), (0, 0, 0)),
        "16-bit, one gray transparent": (save(Image.new("I;16", (8, 8), 300), transparency=300), (0, 0, 200)),
        "16-bit, another gray transparent": (save(deep, transparency=300), (128, 128, 128)),
    }


MODES = modes()


@pytest.mark.parametrize(("data", "color"), MODES.values(), ids=list(MODES))
async def test_every_mode(data: bytes, color: tuple[int, int, int]) -> None:
    assert is_near(pixel(await load(data, background=(0, 0, 200))), color, 3)


async def test_float_with_negative_values_is_stretched() -> None:
    image = Image.new("F", (2, 1), -1000.0)
    image.putpixel((1, 0), 1000.0)
    loaded = await load(save(image, "TIFF"))
    assert (pixel(loaded), pixel(loaded, 1)) == ((0, 0, 0), WHITE)


async def test_floats_that_are_no_numbers_dont_spoil_the_others() -> None:
    values = (math.nan, math.inf, -math.inf, 0.5, 1.0)
    image = Image.new("F", (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    loaded = await load(save(image, "TIFF"))
    assert [pixel(loaded, x)[0] for x in range(len(values))] == [0, 255, 0, 128, 255]


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP", *(["AVIF"] if "AVIF" in FORMATS else [])])
@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (2, (1, 0)), (3, (1, 1)), (4, (0, 1)), (5, (0, 0)), (6, (1, 0)),
                                (7, (1, 1)), (8, (0, 1))],
)  # fmt: skip
async def test_orientation(image_format: str, orientation: int, corner: tuple[int, int]) -> None:
    image = Image.new("RGB", (64, 32), WHITE)
    image.paste(RED, (0, 0, 32, 16))  # the stored top left; `corner` is where it belongs
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = await load(save(image, image_format, exif=exif))
    assert (loaded.width, loaded.height) == ((64, 32) if orientation < 5 else (32, 64))
    x, y = (side * (edge - 9) + 4 for side, edge in zip(corner, (loaded.width, loaded.height), strict=True))
    assert is_near(pixel(loaded, x, y), RED, 40)


async def test_broken_exif_is_ignored() -> None:
    assert (await load(save(Image.new("RGB", (8, 8)), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))).width == 8


async def test_colour_profile_is_applied_and_a_broken_one_ignored() -> None:
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # not for RGB pixels
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    for profile in (b"nonsense", swapped, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()):
        assert is_near(pixel(await load(save(image, icc_profile=profile))), (200, 100, 50), 2)
    linear = gamma_profile(1.0)
    assert is_near(pixel(await load(save(Image.new("RGB", (8, 8), (55, 55, 55)), icc_profile=linear))), (128,) * 3, 3)
    transparent = save(Image.new("RGBA", (8, 8), (55, 55, 55, 0)), icc_profile=linear)
    assert pixel(await load(transparent)) == WHITE


def gamma_profile(gamma: float) -> bytes:
    """sRGB's profile with its tone curves replaced by a plain gamma."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for i in range(struct.unpack_from(">I", profile, 128)[0]):
        signature, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * i)
        if signature in (b"rTRC", b"gTRC", b"bTRC"):
            curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
            profile[offset : offset + size] = curve.ljust(size, b"\0")
    return bytes(profile)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
async def test_first_frame_of_an_animation(image_format: str) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    image = await load(save(frames[0], image_format, save_all=True, append_images=frames[1:]))
    assert is_near(pixel(image), RED)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((1, 1), (1, 1)), ((512, 512), (512, 512)), ((1024, 256), (512, 128)), ((1, 20_000), (1, 512)),
     ((20_000, 3), (512, 1)), ((1600, 1200), (512, 384)), ((513, 512), (512, 511))],
)  # fmt: skip
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
async def test_longest_edge(
    gate: ImageGate, image_format: str, size: tuple[int, int], wanted: tuple[int, int]
) -> None:
    image = await gate.load(ImageBytes(save(Image.new("RGB", size, RED), image_format)), "image")
    assert (image.width, image.height) == wanted
    assert is_near(pixel(image), RED)


async def test_shrinking_keeps_transparent_colours_out() -> None:
    image = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 32, 64))
    loaded = await load(save(image), max_edge_px=16)
    assert all(green <= red for red, green, _ in (pixel(loaded, x) for x in range(16)))


async def test_jpeg_is_shrunk_while_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    original = Image.Image.resize

    def resize(image: Image.Image, *args: Any, **kwargs: Any) -> Image.Image:
        sizes.append(image.size)
        return original(image, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", resize)
    await load(save(Image.new("RGB", (4000, 3000), RED), "JPEG"), max_edge_px=400)
    assert sizes == [(1000, 750)]


# --- what is refused


async def refusal(source: ImageSource | bytes, **values: Any) -> RequestError:
    with pytest.raises(RequestError) as raised:
        await load(source, **values)
    error = raised.value
    assert error.param == "images[3]"
    assert error.message.startswith("images[3]: ")
    assert not any(word in error.message for word in ("/PIL", "site-packages", "BytesIO", "0x"))
    return error


NO_IMAGES = {
    "empty": (b"", "empty (0 bytes)"),
    "text": (b"hello, world\n", "looks like text"),
    "Unicode": ("Grüße".encode(), "looks like text"),
    "noise": (bytes(range(7)) * 9, "looks like no image"),
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "looks like SVG"),
    "plain SVG": (b'\n <svg width="1">', "looks like SVG"),
    "HTML": (b"\n<!DOCTYPE html><html><script>secret</script>", "looks like an HTML page"),
    "XML": (b"<?xml version='1.0'?><a/>", "looks like XML"),
    "PDF": (b"%PDF-1.7\n", "looks like a PDF"),
    "ZIP": (b"PK\x03\x04" + b"\0" * 40, "looks like an archive"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
    "MP4": (b"\0\0\0\x18ftypisom\0\0\0\0", "looks like a video"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "looks like JPEG 2000"),
    "Photoshop": (b"8BPS\0\1", "looks like a Photoshop file"),
    "JPEG header only": (b"\xff\xd8\xff", "JPEG"),
    "PNG header only": (b"\x89PNG\r\n\x1a\n", "PNG"),
    "PPM, which Pillow could read": (b"P6 1 1 255\n\0\0\0", "looks like no image"),
    "ICO, which Pillow could read": (save(Image.new("RGB", (16, 16)), "ICO"), "looks like no image"),
    "EPS, which Pillow would run": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "looks like text"),
}


@pytest.mark.parametrize(("data", "words"), NO_IMAGES.values(), ids=list(NO_IMAGES))
async def test_no_image(data: bytes, words: str) -> None:
    error = await refusal(data)
    assert isinstance(error, InvalidImage)
    assert words in error.message
    assert "secret" not in error.message


@pytest.mark.parametrize("image_format", FORMATS)
async def test_half_a_file_is_an_error(image_format: str) -> None:
    data = save(Image.effect_noise((64, 64), 90).convert("RGB"), image_format)
    error = await refusal(data[: len(data) // 2])
    assert isinstance(error, InvalidImage)


BAD_TEXT: dict[str, tuple[ImageSource, str]] = {
    "no base64": (ImageBase64("!!!"), "isn't base64"),
    "one digit": (ImageBase64("A"), "isn't base64"),
    "padding inside": (ImageBase64("AA==AAAA"), "isn't base64"),
    "not ASCII": (ImageBase64("ÄÖÜ="), "isn't base64"),
    "surrogate": (ImageBase64("\ud800"), "isn't base64"),
    "empty": (ImageBase64(""), "empty"),
    "no comma": (ImageUrl("data:image/png;base64"), "no comma"),
    "nothing": (ImageUrl("data:"), "no comma"),
    "empty data": (ImageUrl("data:,"), "empty"),
    "empty base64": (ImageUrl("data:image/png;base64,"), "empty"),
    "data of text": (ImageUrl("data:text/plain,hello"), "looks like text"),
    "bad base64": (ImageUrl("data:image/png;base64,a*b"), "isn't base64"),
    "bad percent": (ImageUrl("data:image/png,%zz%"), "looks like text"),
}


@pytest.mark.parametrize(("source", "words"), BAD_TEXT.values(), ids=list(BAD_TEXT))
async def test_bad_text(source: ImageSource, words: str) -> None:
    error = await refusal(source)
    assert isinstance(error, InvalidImage)
    assert words in error.message


@pytest.mark.parametrize("url", ["ftp://example.com/a.png", "file:///etc/passwd", "javascript:alert(1)", "a.png", ""])
async def test_other_addresses_are_refused(url: str) -> None:
    assert isinstance(await refusal(ImageUrl(url)), ImageUrlRefused)


TOO_MANY_BYTES: dict[str, ImageSource] = {
    "bytes": ImageBytes(b"x" * 1001),
    "base64": ImageBase64(b64(b"x" * 1001)),
    "data URI": ImageUrl(data_uri(b"x" * 1001)),
    "percent": ImageUrl("data:," + "x" * 1001),
    "percent, much": ImageUrl("data:," + "x" * 9000),
}


@pytest.mark.parametrize("source", TOO_MANY_BYTES.values(), ids=list(TOO_MANY_BYTES))
async def test_too_many_bytes(source: ImageSource) -> None:
    error = await refusal(source, max_image_bytes=1000)
    assert isinstance(error, ImageTooLarge)
    assert "limit is 1000" in error.message


async def test_exactly_the_limit_is_taken() -> None:
    for source in (ImageBytes(PNG), ImageBase64(b64(PNG)), ImageUrl(data_uri(PNG))):
        assert (await load(source, max_image_bytes=len(PNG))).width == 40


async def test_pixels_are_counted_before_they_are_allocated() -> None:
    tracemalloc.start()
    error = await refusal(huge_png(20_000, 20_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(error, ImageTooLarge)
    assert "more than 50000000 pixels" in error.message
    assert peak < 10_000_000
    assert isinstance(await refusal(huge_png(2**31 - 1, 2**31 - 1)), ImageTooLarge)


async def test_pillows_own_limit_is_neither_error_nor_warning() -> None:
    image = await load(save(Image.new("1", (10_000, 9_000), 1)), max_image_pixels=100_000_000, max_edge_px=64)
    assert (image.width, image.height) == (64, 58)


async def test_the_pixel_limit_is_exact() -> None:
    assert (await load(PNG, max_image_pixels=40 * 30)).width == 40
    error = await refusal(PNG, max_image_pixels=40 * 30 - 1)
    assert isinstance(error, ImageTooLarge)
    assert "40 x 30 = 1200 pixels and the limit is 1199" in error.message


# --- hostile bytes


def originals() -> dict[str, bytes]:
    noise = Image.effect_noise((24, 18), 90)
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    clear = Image.new("RGBA", (24, 18))
    files = {name: save(noise.convert("RGB"), name) for name in FORMATS}
    return files | {
        "JPEG with metadata": save(noise.convert("RGB"), "JPEG", exif=exif, icc_profile=profile),
        "progressive JPEG": save(noise.convert("RGB"), "JPEG", progressive=True),
        "CMYK JPEG": save(noise.convert("CMYK"), "JPEG"),
        "PNG with palette": save(noise.convert("P"), transparency=3),
        "16-bit PNG": save(noise.convert("I;16"), icc_profile=b"x" * 30),
        "LZW TIFF": save(noise.convert("RGB"), "TIFF", compression="tiff_lzw"),
        "JPEG TIFF": save(noise.convert("RGB"), "TIFF", compression="jpeg"),
        "float TIFF": save(noise.convert("F"), "TIFF"),
        "animated WEBP": save(noise.convert("RGBA"), "WEBP", save_all=True, append_images=[clear]),
        "animated GIF": save(noise, "GIF", save_all=True, append_images=[clear]),
    }


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A copy with its end cut off, some bytes changed, removed, doubled, or a length blown up."""
    broken = bytearray(data)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(broken))
        match chance.randrange(5):
            case 0:
                del broken[max(at, 1) :]
            case 1:
                broken[at] ^= 1 << chance.randrange(8)
            case 2:
                broken[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
            case 3:
                del broken[at : at + chance.randint(1, 8)]
            case _:
                broken[at:at] = broken[at : at + chance.randint(1, 16)]
        if not broken:
            return b"\0"
    return bytes(broken)


@pytest.mark.parametrize("name", originals())
async def test_damaged_files_are_images_or_errors(gate: ImageGate, name: str) -> None:
    data, chance = originals()[name], random.Random(name)
    for length in range(0, min(len(data), 120), 3):
        await image_or_error(gate, data[:length])
    for _ in range(250):
        await image_or_error(gate, damaged(data, chance))
    assert (await gate.load(ImageBytes(data), "image")).rgb


async def image_or_error(gate: ImageGate, data: bytes) -> None:
    try:
        image = await gate.load(ImageBytes(data), "image")
    except (InvalidImage, ImageTooLarge):
        return
    assert len(image.rgb) == image.width * image.height * 3
    assert max(image.width, image.height) <= 512


async def test_damaged_tiff_tags(gate: ImageGate) -> None:
    """TIFF lets a file claim any sample format, count and layout: each tag with each odd value."""
    for tag in (256, 257, 258, 259, 262, 273, 277, 278, 279, 282, 317, 322, 338, 339, 34675):
        for value in (0, 1, 2, 5, 32, 65535, 2**31):
            tags = TiffImagePlugin.ImageFileDirectory_v2()
            tags[270] = "x"
            data = bytearray(save(Image.new("RGB", (8, 8)), "TIFF", tiffinfo=tags))
            (start,) = struct.unpack_from("<I", data, 4)
            for entry in range(struct.unpack_from("<H", data, start)[0]):
                at = start + 2 + 12 * entry
                if struct.unpack_from("<H", data, at)[0] == tag:
                    struct.pack_into("<HII", data, at + 2, 4, 1, value)
            await image_or_error(gate, bytes(data))


# --- where it runs


async def test_decoding_runs_beside_the_event_loop(gate: ImageGate, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    original: Callable[..., Any] = Image.open

    def opened(*args: Any, **kwargs: Any) -> Any:
        threads.add(threading.current_thread().name)
        return original(*args, **kwargs)

    monkeypatch.setattr(Image, "open", opened)
    await asyncio.gather(*(gate.load(ImageBytes(PNG), "image") for _ in range(8)))
    assert threads
    assert all(name.startswith("image") for name in threads)
    assert len(threads) <= ImageConfig().num_threads


async def test_a_cancelled_load_leaves_the_gate_usable(gate: ImageGate) -> None:
    tasks = [asyncio.create_task(gate.load(ImageBytes(PNG), "image")) for _ in range(20)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (await gate.load(ImageBytes(PNG), "image")).width == 40

"""HEIC and JPEG XL: what comes out, what is refused, and what bounds the processes that decode them."""

import asyncio
import io
import random
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serve_app.config.http import ImageConfig
from serve_app.errors import ImageTooLarge, InvalidImage, RequestError
from serve_app.images import decoder_processes, formats
from serve_app.images.gate import ImageBytes, ImageGate
from serve_app.images.jxl_header import JxlHeader, jxl_header
from tests.images.test_gate import RED, WHITE, damaged, gamma_profile, is_near, pixel, save

pillow_heif = pytest.importorskip("pillow_heif")
pytest.importorskip("pillow_jxl")

from tests import heif_files as heif_made  # noqa: E402
from tests import jxl_files as jxl_made  # noqa: E402
from tests.heif_files import coded, grid, heic, heif, overlay  # noqa: E402
from tests.jxl_files import ALPHA, BLACK, black_frames, boxed, header, jxl  # noqa: E402

SMALL = (64, 64)
TURNS = [(1, (0, 0)), (2, (1, 0)), (3, (1, 1)), (4, (0, 1)), (5, (0, 0)), (6, (1, 0)), (7, (1, 1)), (8, (0, 1))]
SAVERS = {"HEIC": heic, "JPEG XL": jxl}

Saver = Callable[..., bytes]
each_format = pytest.mark.parametrize("saver", SAVERS.values(), ids=list(SAVERS))


@pytest.fixture
async def gate() -> AsyncIterator[ImageGate]:
    gate = ImageGate(ImageConfig(background=(0, 0, 200)))
    yield gate
    await gate.close()


async def check_refused(gate: ImageGate, data: bytes, error_class: type[RequestError], words: str) -> None:
    with pytest.raises(RequestError) as raised:
        await gate.load(ImageBytes(data), "image")
    assert type(raised.value) is error_class
    assert words in raised.value.message, raised.value.message


# --- what comes out


@each_format
@pytest.mark.parametrize("size", [(1, 1), (30, 20), (3000, 40)])
async def test_sizes(gate: ImageGate, saver: Saver, size: tuple[int, int]) -> None:
    image = await gate.load(ImageBytes(saver(Image.new("RGB", size, RED))), "image")
    assert (image.width, image.height) == ((2048, 27) if size[0] == 3000 else size)
    assert is_near(pixel(image, image.width // 2, image.height // 2), RED, 12)


def corners(image_mode: str = "RGB") -> Image.Image:
    image = Image.new(image_mode, (64, 32), WHITE)
    image.paste(RED, (0, 0, 32, 16))
    return image


async def check_upright(gate: ImageGate, data: bytes, orientation: int, corner: tuple[int, int]) -> None:
    loaded = await gate.load(ImageBytes(data), "image")
    assert (loaded.width, loaded.height) == ((64, 32) if orientation < 5 else (32, 64))
    x, y = (side * (edge - 9) + 4 for side, edge in zip(corner, (loaded.width, loaded.height), strict=True))
    assert is_near(pixel(loaded, x, y), RED, 40)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize(("orientation", "corner"), TURNS)
async def test_heic_is_turned_once(gate: ImageGate, orientation: int, corner: tuple[int, int]) -> None:
    await check_upright(gate, heic(corners(), exif=exif(orientation).tobytes()), orientation, corner)


@pytest.mark.parametrize(("orientation", "corner"), TURNS)
async def test_jpeg_xl_is_turned_once(gate: ImageGate, orientation: int, corner: tuple[int, int]) -> None:
    data = jxl_made.turned(jxl(corners()), orientation)
    await check_upright(gate, data, orientation, corner)
    with_exif = jxl_made.CONTAINER + heif_made.box(b"Exif", bytes(4) + exif(orientation).tobytes()[6:])
    await check_upright(gate, with_exif + heif_made.box(b"jxlc", data), orientation, corner)


async def test_exif_alone_turns_no_jpeg_xl(gate: ImageGate) -> None:
    await check_upright(gate, jxl(corners(), exif=exif(6).tobytes()), 1, (0, 0))


@pytest.mark.parametrize(("orientation", "corner"), TURNS)
@pytest.mark.parametrize("is_rebuilt", [True, False])
async def test_jpeg_in_jpeg_xl_is_turned_once(
    gate: ImageGate, tmp_path: Path, orientation: int, corner: tuple[int, int], is_rebuilt: bool
) -> None:
    data = packed_jpeg(tmp_path, save(corners(), "JPEG", exif=exif(orientation)))
    await check_upright(gate, data if is_rebuilt else data.replace(b"jbrd", b"free"), orientation, corner)


def packed_jpeg(folder: Path, data: bytes) -> bytes:
    """The JPEG itself in a JPEG XL, from which it can be rebuilt."""
    (folder / "a.jpg").write_bytes(data)
    with Image.open(folder / "a.jpg") as image:
        made = jxl(image, lossless_jpeg=True)
    assert b"jbrd" in made
    return made


async def test_colour_profile_is_applied(gate: ImageGate, tmp_path: Path) -> None:
    image, profile = Image.new("RGB", (64, 64), (55, 55, 55)), gamma_profile(1.0)
    packed = packed_jpeg(tmp_path, save(image, "JPEG", icc_profile=profile))
    for data in (heic(image, icc_profile=profile), packed, packed.replace(b"jbrd", b"free")):
        assert is_near(pixel(await gate.load(ImageBytes(data), "image")), (128,) * 3, 4)


def modes() -> dict[str, tuple[bytes, tuple[int, int, int]]]:
    """Files and the colour that must come out on a (0, 0, 200) background."""
    ten_bits = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", SMALL, b"\xff\xff\0\0\0\0" * 64 * 64).save(ten_bits)
    return {
        "HEIC, transparent": (heic(Image.new("RGBA", SMALL, (255, 0, 0, 0))), (0, 0, 200)),
        "HEIC, half transparent": (heic(Image.new("RGBA", SMALL, (255, 0, 0, 128))), (128, 0, 100)),
        "HEIC, gray": (heic(Image.new("L", SMALL, 100)), (100, 100, 100)),
        "HEIC, 10 bits": (ten_bits.getvalue(), RED),
        "JPEG XL, transparent": (jxl(Image.new("RGBA", SMALL, (255, 0, 0, 0))), (0, 0, 200)),
        "JPEG XL, half transparent": (jxl(Image.new("RGBA", SMALL, (255, 0, 0, 128)), lossless=True), (128, 0, 100)),
        "JPEG XL, gray": (jxl(Image.new("L", SMALL, 100), lossless=True), (100, 100, 100)),
        "JPEG XL, gray and transparent": (jxl(Image.new("LA", SMALL, (100, 0)), lossless=True), (0, 0, 200)),
        "JPEG XL, 16 bits of linear light": (jxl(Image.new("I;16", SMALL, 32768), lossless=True), (188, 188, 188)),
        "JPEG XL, floats of linear light": (jxl(Image.new("F", SMALL, 0.5), lossless=True), (188, 188, 188)),
        "JPEG XL, floats a little above white": (jxl(Image.new("F", SMALL, 1.001), lossless=True), WHITE),
        "JPEG XL in parts": (boxed(jxl(Image.new("RGB", SMALL, RED), lossless=True), "parts"), RED),
        "HEIC, grid": (heif(grid(2, 2, (128, 128), 2, (128, 128)), coded(64)), (128, 128, 128)),
        "HEIC, overlay": (heif(overlay(SMALL, [2], SMALL), coded(64)), (128, 128, 128)),
    }


MODES = modes()


@pytest.mark.parametrize(("data", "color"), MODES.values(), ids=list(MODES))
async def test_modes(gate: ImageGate, data: bytes, color: tuple[int, int, int]) -> None:
    assert is_near(pixel(await gate.load(ImageBytes(data), "image")), color, 6)


@pytest.mark.parametrize("primary", [0, 1])
async def test_the_primary_image_of_several(gate: ImageGate, primary: int) -> None:
    blue = Image.new("RGB", SMALL, (0, 0, 255))
    data = heic(Image.new("RGB", SMALL, RED), save_all=True, append_images=[blue], primary_index=primary)
    assert is_near(pixel(await gate.load(ImageBytes(data), "image")), (RED, (0, 0, 255))[primary], 12)


# --- what is refused


def hostile() -> dict[str, tuple[bytes, type[RequestError], str]]:
    pixels, broken, unknown = "50000000", "broken or cut short", "looks like a broken HEIC"
    eight = header(8, 8).data
    return {
        "HEIC that says 30000 and has 64": (heif(coded(64, (30_000, 30_000))), ImageTooLarge, pixels),
        "HEIC that says 7000 and has 64": (heif(coded(64, (7000, 7000))), InvalidImage, broken),
        "HEIC that says 64 and has 4096": (heif(coded(4096, SMALL)), InvalidImage, broken),
        "HEIC, canvas of 60000": (heif(grid(1, 1, (60_000, 60_000), 2, SMALL), coded(64)), InvalidImage, broken),
        "HEIC, overlay on 60000": (heif(overlay((60_000, 60_000), [2], SMALL), coded(64)), InvalidImage, broken),
        "HEIC, grid of 65025": (heif(grid(255, 255, SMALL, 2, SMALL), coded(64)), InvalidImage, unknown),
        "HEIC, tiles that lie": (
            heif(grid(2, 2, (128, 128), 2, (128, 128)), coded(4096, SMALL)), InvalidImage, broken,
        ),
        "HEIC of overlays of overlays": (
            heif(*[overlay(SMALL, [n + 2] * 50, SMALL) for n in range(8)], coded(64)), InvalidImage, broken,
        ),
        "HEIC, overlay of itself": (heif(overlay(SMALL, [1, 2], SMALL), coded(64)), InvalidImage, broken),
        "HEIC header only": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", InvalidImage, unknown),
        "JPEG XL of 2^30 x 2^30": (header(2**30, 2**30).data, ImageTooLarge, f"{2**60} pixels"),
        "JPEG XL of 7072 x 7072": (header(7072, 7072).data, ImageTooLarge, pixels),
        "JPEG XL in a box, huge": (boxed(header(2**30, 1).data, "parts"), ImageTooLarge, pixels),
        "JPEG XL, animation": (header(8, 8, is_animated=True).data, InvalidImage, "is an animation"),
        "JPEG XL, CMYK": (header(8, 8, (BLACK,)).data, InvalidImage, "is in CMYK"),
        "JPEG XL of 4000 channels": (header(8, 8, (ALPHA,) * 4000).data, InvalidImage, "4000 channels"),
        "JPEG XL, deep gray with transparency": (
            header(8, 8, (ALPHA,), num_bits=16, is_gray=True).data, InvalidImage, "more than 8 bits",
        ),
        "JPEG XL, header only": (eight, InvalidImage, broken),
        "JPEG XL, half a header": (eight[:6], InvalidImage, broken),
        "JPEG XL, no codestream": (jxl_made.CONTAINER + heif_made.box(b"Exif", bytes(9)), InvalidImage, broken),
        "JPEG XL, an empty box": (jxl_made.CONTAINER + b"\0\0\0\1jxlc" + bytes(8), InvalidImage, broken),
        "JPEG XL, a frame of 20000": (black_frames(1, 20_000), InvalidImage, broken),
        "JPEG XL, a frame of 60000": (black_frames(1, 60_000), InvalidImage, broken),
    }  # fmt: skip


HOSTILE = hostile()


@pytest.mark.parametrize(("data", "error_class", "words"), HOSTILE.values(), ids=list(HOSTILE))
async def test_hostile_files(gate: ImageGate, data: bytes, error_class: type[RequestError], words: str) -> None:
    await check_refused(gate, data, error_class, words)


@each_format
async def test_files_cut_short(gate: ImageGate, saver: Saver) -> None:
    data = saver(Image.effect_noise((64, 48), 90).convert("RGB"))
    for part in range(1, 21):
        await check_refused(gate, data[: len(data) * part // 21], InvalidImage, "")


@each_format
async def test_damaged_files_are_images_or_refused(gate: ImageGate, saver: Saver) -> None:
    chance = random.Random(7)
    data = saver(Image.effect_noise((48, 32), 90).convert("RGBA"), exif=exif(6).tobytes())
    for _ in range(250):
        try:
            image = await gate.load(ImageBytes(damaged(data, chance)), "image")
        except RequestError:
            continue
        assert len(image.rgb) == image.width * image.height * 3


# --- what bounds them


LABORIOUS = {
    "HEIC of 256 tiles of 4096": heif(grid(16, 16, (7000, 7000), 2, (7000, 7000)), coded(4096)),
    "JPEG XL of 100 frames of 4096": black_frames(100, 4096),
}


@pytest.mark.parametrize("data", LABORIOUS.values(), ids=list(LABORIOUS))
async def test_time_is_bounded(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(decoder_processes, "MAX_CPU_S", 1.0)
    gate = ImageGate(ImageConfig())
    await check_refused(gate, data, InvalidImage, "more than 1 seconds or 1781 MiB")
    image = await gate.load(ImageBytes(jxl(Image.new("RGB", SMALL, RED), lossless=True)), "image")
    assert is_near(pixel(image), RED)
    await gate.close()


MOST_DECODER_MIB = 700  # of all hostile files above; the bound is 1781


def test_memory_is_bounded(tmp_path: Path) -> None:
    """In a process of its own, so that its children's peak is that of the decoders."""
    for index, (data, _, _) in enumerate(HOSTILE.values()):
        (tmp_path / str(index)).write_bytes(data)
    code = f"from tests.images.test_extra_formats import detonate; detonate({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    num_refused, own_mib, decoders_mib = map(int, done.stdout.split())
    assert num_refused == len(HOSTILE)
    assert own_mib < 50
    assert decoders_mib < MOST_DECODER_MIB


def detonate(folder: str) -> None:
    """Print how many files are refused, and in MiB by how much that grew this process and a decoder's peak."""
    files = [path.read_bytes() for path in Path(folder).iterdir()]

    async def num_refused() -> int:
        gate, num = ImageGate(ImageConfig()), 0
        for data in files:
            try:
                await gate.load(ImageBytes(data), "image")
            except RequestError:
                num += 1
        await gate.close()
        return num

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    num = asyncio.run(num_refused())
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(num, own // 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)


async def test_a_large_image_fits_into_the_bounds(gate: ImageGate) -> None:
    image = await gate.load(ImageBytes(jxl(Image.new("RGB", (7000, 7000), RED), effort=1)), "image")
    assert (image.width, image.height) == (2048, 2048)


async def test_processes_are_kept_and_end_with_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        assert not any("KEY" in name for name in kwargs["env"])
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setenv("SERVE_APP_API_KEYS", "secret")
    gate = ImageGate(ImageConfig(num_threads=2))
    data = ImageBytes(heic(Image.new("RGB", SMALL, RED)))
    await asyncio.gather(*[gate.load(data, "image") for _ in range(8)])
    assert 1 <= len(started) <= 2
    started[0].kill()  # as the system does where memory runs out
    started[0].wait()
    await asyncio.gather(*[gate.load(data, "image") for _ in range(8)])
    await gate.close()
    assert all(process.poll() is not None for process in started)


# --- where the extra isn't installed


@each_format
async def test_without_the_extra(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, gate: ImageGate, saver: Saver
) -> None:
    monkeypatch.setattr(formats, "find_spec", lambda library: None)
    formats.extra_formats.cache_clear()
    request.addfinalizer(formats.extra_formats.cache_clear)
    data = saver(Image.new("RGB", SMALL, RED))
    kind = "HEIC" if saver is heic else "JPEG XL"
    await check_refused(gate, data, InvalidImage, f"this looks like {kind}: JPEG, PNG, WEBP, GIF, BMP, ")


def test_the_serving_process_loads_no_library_of_the_extra() -> None:
    code = (
        "import asyncio, sys\n"
        "from serve_app.images.gate import ImageBytes, ImageGate\n"
        "from serve_app.config.http import ImageConfig\n"
        "gate = ImageGate(ImageConfig())\n"
        "data = bytes.fromhex(sys.argv[1])\n"
        "print(asyncio.run(gate.load(ImageBytes(data), 'image')).width)\n"
        "assert not {'pillow_heif', 'pillow_jxl'} & set(sys.modules)\n"
    )
    data = jxl(Image.new("RGB", SMALL, RED)).hex()
    done = subprocess.run([sys.executable, "-c", code, data], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "64\n"), done.stderr


# --- the header


@pytest.mark.parametrize("how", ["whole", "parts", "to the end", "64 bits"])
def test_the_codestream_is_found_in_its_boxes(how: str) -> None:
    assert jxl_header(boxed(header(7, 9, (ALPHA,)).data, how)) == JxlHeader(7, 9, num_extra_channels=1)


@pytest.mark.parametrize("size", [(8, 8), (256, 256), (257, 8), (64, 48), (1920, 1080), (3000, 2000), (513, 8193)])
def test_the_sizes_are_those_of_the_encoder(size: tuple[int, int]) -> None:
    head = jxl_header(jxl(Image.new("L", size), effort=1))
    assert (head.width, head.height) == size


def test_what_stands_before_the_channels_is_read_over() -> None:
    head = jxl_header(header(70_000, 5, (ALPHA, BLACK, 1), True, True, num_bits=16, is_gray=True).data)
    assert head == JxlHeader(70_000, 5, True, 3, True, True)


def test_a_damaged_header_is_no_other_error() -> None:
    chance, data = random.Random(3), boxed(header(70_000, 5, (ALPHA, BLACK), True, True).data, "parts")
    for _ in range(2000):
        with suppress(ValueError):
            jxl_header(damaged(data, chance))

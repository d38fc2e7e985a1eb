"""Hostile images are refused in the right words and cost little, odd ones come out right; a good one loads next."""

import math
import random
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, TiffImagePlugin

from serve_app.config.http import ImageConfig
from serve_app.errors import ImageTooLarge, InvalidImage, RequestError
from serve_app.images.formats import FORMATS
from serve_app.images.gate import ImageBytes, ImageGate
from tests import hostile_images as made
from tests.hostile_images import RED, noise, png_chunk, png_of_red, red, save
from tests.images.test_gate import is_near, pixel

PARAM = "messages[0].content[1].image_url"
GOOD = save(red())
HAS_AVIF = "AVIF" in FORMATS
LEAKS = ("/PIL", "site-packages", "BytesIO", "0x", "Errno", "secret", "Decompression")

Refused = tuple[bytes, type[RequestError], str]
PIXELS, BROKEN, UNKNOWN = "50000000 pixels", "broken or cut short", "looks like"


@pytest.fixture
async def gate() -> AsyncIterator[ImageGate]:
    gate = ImageGate(ImageConfig())
    yield gate
    await gate.close()


async def check_refused(gate: ImageGate, data: bytes, error_class: type[RequestError], words: str) -> None:
    with pytest.raises(RequestError) as raised:
        await gate.load(ImageBytes(data), PARAM)
    error = raised.value
    assert type(error) is error_class, error
    assert error.code == error_class.code
    assert error.param == PARAM
    assert error.message.startswith(f"{PARAM}: ")
    assert words in error.message, error.message
    assert not any(leak in error.message for leak in LEAKS), error.message


async def check_good_image(gate: ImageGate) -> None:
    assert pixel(await gate.load(ImageBytes(GOOD), PARAM)) == RED


# --- bombs: small files that would take memory or minutes


def bombs() -> dict[str, Refused]:
    """Beside 50 million pixels, the default limit, what is claimed is up to 2^62."""
    zeros = made.squeezed(20_000 * 20_000)
    text, restarts = png_chunk(b"zTXt", b"x\0\0" + zeros), b"\xff\xd0\xff\xff"
    strips = made.gray_tags(20_000, 20_000, len(zeros))
    tile = made.tile_tags(20_000, len(zeros))
    found: dict[str, Refused] = {
        "PNG of 2^31 x 2^31": (made.png(2**31 - 1, 2**31 - 1), ImageTooLarge, PIXELS),
        "PNG of 20000 x 20000": (made.png(20_000, 20_000), ImageTooLarge, PIXELS),
        "PNG of 2^31 x 1": (made.png(2**31 - 1, 1), ImageTooLarge, PIXELS),
        "PNG of 7072 x 7072": (made.png(7072, 7072), ImageTooLarge, PIXELS),
        "PNG, 16 bits": (made.png(2**31 - 1, 2**31 - 1, depth=16, color=6), ImageTooLarge, PIXELS),
        "PNG, profile that inflates": (png_of_red(png_chunk(b"iCCP", b"x\0\0" + zeros)), InvalidImage, BROKEN),
        "PNG, text that inflates": (png_of_red(text), InvalidImage, BROKEN),
        "PNG, text that inflates, behind": (png_of_red(end=text), InvalidImage, BROKEN),
        "PNG, Unicode text that inflates": (
            png_of_red(png_chunk(b"iTXt", b"x\0\1\0\0\0" + zeros)),
            InvalidImage,
            BROKEN,
        ),
        "PNG, many texts that inflate": (
            png_of_red(*[png_chunk(b"zTXt", b"x\0\0" + made.squeezed(1_000_000))] * 100),
            InvalidImage,
            BROKEN,
        ),
        "PNG of a million chunks": (png_of_red(*[png_chunk(b"abCd", b"")] * 1_000_000), InvalidImage, "20000 chunks"),
        "GIF screen": (made.gif((65535, 65535), (1, 1)), ImageTooLarge, PIXELS),
        "GIF frame": (made.gif((1, 1), (65535, 65535)), ImageTooLarge, PIXELS),
        "GIF frame to be cleared": (made.gif((65535, 65535), (65535, 65535), disposal=2), ImageTooLarge, PIXELS),
        "GIF frame to be cleared, outside": (made.gif((1, 1), (65535, 65535), disposal=2), ImageTooLarge, PIXELS),
        "GIF frame to be restored": (made.gif((1, 1), (65535, 65535), 3, transparent=True), ImageTooLarge, PIXELS),
        "WEBP canvas": (made.webp(16384, 16384, is_animated=True), ImageTooLarge, PIXELS),
        "WEBP canvas of 2^24 x 255": (made.webp(2**24, 255, is_animated=True), ImageTooLarge, PIXELS),
        "WEBP canvas of a still": (made.webp(16384, 16384, is_animated=False), ImageTooLarge, PIXELS),
        "BMP, huge": (made.bmp(2**31 - 1, 2**31 - 1), ImageTooLarge, PIXELS),
        "BMP, huge height": (made.bmp(1, 2**31 - 1), ImageTooLarge, PIXELS),
        "BMP, huge negative height": (made.bmp(65535, -(2**31)), ImageTooLarge, PIXELS),
        "BMP, compressed runs": (made.bmp(20_000, 20_000, bytes(8), bits=8, compression=1), ImageTooLarge, PIXELS),
        "TIFF, huge": (made.tiff(made.gray_tags(2**31, 2**31, 1), b"x"), ImageTooLarge, PIXELS),
        "TIFF of 20000 x 20000": (made.tiff(strips, zeros), ImageTooLarge, PIXELS),
        "TIFF, huge tile": (made.tiff(tile, zeros), ImageTooLarge, "tiles"),
        "TIFF, huge tile beside strips": (
            made.tiff(made.gray_tags(8, 8, len(zeros)) | {322: 20_000, 323: 20_000}, zeros),
            ImageTooLarge,
            "tiles",
        ),
        "TIFF, huge tile of 2^31": (made.tiff(made.tile_tags(2**31, len(zeros)), zeros), ImageTooLarge, "tiles"),
        "TIFF, huge tile given twice": (
            made.tiff(made.tile_tags(16, len(zeros)), zeros, first=((322, 20_000), (323, 20_000))),
            InvalidImage,
            BROKEN,
        ),
        "TIFF, one tile edge": (
            made.tiff(made.gray_tags(8, 8, len(zeros)) | {322: 20_000}, zeros), InvalidImage, BROKEN,
        ),
        "TIFF, edges given twice": (
            made.tiff(made.gray_tags(8, 8, len(zeros)), zeros, first=((256, 20_000), (257, 20_000))),
            ImageTooLarge,
            PIXELS,
        ),
        "BigTIFF, huge tile": (made.big_tiff(tile, zeros + bytes(8)), ImageTooLarge, "tiles"),
        "TIFF, JPEG of a thousand scans": (_tiff_of_scans(), InvalidImage, BROKEN),
        "JPEG of 65535 x 65535": (made.jpeg_of_edges(65535, 65535), ImageTooLarge, PIXELS),
        "JPEG of 65500 x 800": (made.jpeg_of_edges(65500, 800), ImageTooLarge, PIXELS),
        "JPEG of ten thousand scans": (made.jpeg_of_scans(4000, 10_000), InvalidImage, "100 scans"),
        "JPEG of 101 scans": (made.jpeg_of_scans(64, 101), InvalidImage, "100 scans"),
        "JPEG of scans behind a hidden end": (
            made.jpeg_of_scans(4000, 10_000, made.jpeg_segment(0xFE, b"\xff\xd9")), InvalidImage, "100 scans",
        ),
        "JPEG of scans behind restarts": (made.jpeg_of_scans(4000, 10_000, restarts), InvalidImage, "100 scans"),
        "JPEG of a million segments": (
            made.jpeg_with(made.jpeg_segment(0xFE, b"") * 1_000_000), InvalidImage, "100 scans",
        ),
    }  # fmt: skip
    if HAS_AVIF:
        found["AVIF, lying size"] = (made.avif_of_edges(8000, 8000), ImageTooLarge, PIXELS)
        found["AVIF, lying size of 2^31"] = (made.avif_of_edges(2**31 - 1, 2**31 - 1), InvalidImage, "AVIF")
    return found


def _tiff_of_scans() -> bytes:
    jpeg = made.jpeg_of_scans(4000, 1000)
    return made.tiff(made.gray_tags(4000, 4000, len(jpeg), compression=7), jpeg)


BOMBS = bombs()


@pytest.mark.parametrize(("data", "error_class", "words"), BOMBS.values(), ids=list(BOMBS))
async def test_bombs(gate: ImageGate, data: bytes, error_class: type[RequestError], words: str) -> None:
    await check_refused(gate, data, error_class, words)
    await check_good_image(gate)


ALL_BOMBS_MIB = 150  # beside what the process had; one of them alone would take 4 GB


def test_all_bombs_together_stay_small_and_end(tmp_path: Path) -> None:
    """In a process of its own, because what a process took at most is never forgotten."""
    for index, (data, _, _) in enumerate(BOMBS.values()):
        (tmp_path / str(index)).write_bytes(data)
    code = f"from tests.hostile_images import detonate; detonate({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    num_refused, grown_mib = map(int, done.stdout.split())
    assert num_refused == len(BOMBS)
    assert grown_mib < ALL_BOMBS_MIB


# --- no images, broken ones, and files that pretend


def broken() -> dict[str, Refused]:
    jpeg, image = save(noise(), "JPEG"), save(noise())
    gray, squeezed = made.gray_tags, made.squeezed(64)
    endless = (b"\xff" + b"x" * 255) * 4000
    return {
        "empty": (b"", InvalidImage, "empty (0 bytes)"),
        "one byte": (b"\xff", InvalidImage, UNKNOWN),
        "text": (b"a secret text", InvalidImage, "looks like text"),
        "zeros": (bytes(1000), InvalidImage, "looks like no image"),
        "noise": (random.Random(1).randbytes(1000), InvalidImage, "looks like no image"),
        "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg' onload='secret()'/>", InvalidImage, "looks like SVG"),
        "SVG behind a comment": (b"<?xml version='1.0'?><!-- secret --><svg/>", InvalidImage, "looks like SVG"),
        "SVG, compressed": (made.packed(b"<svg/>"), InvalidImage, "looks like an archive"),
        "HTML": (b"<!doctype html><script>secret()</script>", InvalidImage, "looks like an HTML page"),
        "XML with a file as entity": (
            b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
            InvalidImage,
            "looks like XML",
        ),
        "XML of a billion laughs": (
            b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "secret"><!ENTITY c "&b;&b;&b;&b;">]><a>&c;</a>',
            InvalidImage,
            "looks like XML",
        ),
        "PDF": (b"%PDF-1.7\nsecret", InvalidImage, "looks like a PDF"),
        "PDF with a JPEG inside": (b"%PDF-1.7\nstream\n" + jpeg + b"\nendstream", InvalidImage, "looks like a PDF"),
        "ZIP with a PNG inside": (made.zipped("a.png", image), InvalidImage, "looks like an archive"),
        "PNG, compressed": (made.packed(image), InvalidImage, "looks like an archive"),
        "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), InvalidImage, "HEIC"),
        "MP4": (b"\0\0\0\x18ftypisom\0\0\2\0isomavc1" + bytes(99), InvalidImage, "looks like a video"),
        "WebM": (b"\x1a\x45\xdf\xa3" + bytes(99), InvalidImage, "looks like no image"),
        "AVI": (b"RIFF\0\0\0\0AVI LIST", InvalidImage, UNKNOWN),
        "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", InvalidImage, "looks like JPEG 2000"),
        "JPEG XL": (b"\xff\x0a" + bytes(99), InvalidImage, ""),
        "Photoshop": (b"8BPS\0\1" + bytes(99), InvalidImage, "looks like a Photoshop file"),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n(secret) run\n", InvalidImage, "looks like text"),
        "program": (b"\x7fELF\2\1\1" + bytes(99), InvalidImage, "looks like no image"),
        "script": (b"#!/bin/sh\nsecret\n", InvalidImage, "looks like text"),
        "ICO": (save(red((16, 16)), "ICO"), InvalidImage, "looks like no image"),
        "PPM": (save(red(), "PPM"), InvalidImage, "looks like no image"),
        "TGA": (save(red(), "TGA"), InvalidImage, "looks like no image"),
        "ICNS": (b"icns\0\0\0\x08" + bytes(99), InvalidImage, "looks like no image"),
        "PNG behind a byte": (b"x" + image, InvalidImage, UNKNOWN),
        "PNG without edges": (made.png(0, 0), InvalidImage, ""),
        "PNG without width": (made.png(0, 9), InvalidImage, ""),
        "PNG without data": (made.PNG_MAGIC + png_chunk(b"IEND", b""), InvalidImage, ""),
        "PNG with a wrong checksum": (_flipped(image, image.index(b"IHDR") + 20), InvalidImage, ""),
        "PNG with a chunk of 4 GB": (made.PNG_MAGIC + b"\xff\xff\xff\xffIHDR" + bytes(99), InvalidImage, ""),
        "PNG, damaged data": (_flipped(image, len(image) // 2), InvalidImage, BROKEN),
        "PNG, bit depth of 3": (made.png(2, 2, depth=3), InvalidImage, ""),
        "GIF without edges": (made.gif((0, 0), (0, 0)), InvalidImage, ""),
        "GIF without frame": (b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"\x3b", InvalidImage, ""),
        "GIF whose frame breaks off": (made.gif((9, 9), (9, 9)), InvalidImage, BROKEN),
        "GIF of comments without end": (
            b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b"\x21\xfe" + endless, InvalidImage, "",
        ),
        "BMP without edges": (made.bmp(0, 0), InvalidImage, ""),
        "BMP of negative width": (made.bmp(-9, 9, bytes(300)), ImageTooLarge, PIXELS),
        "BMP with too few rows": (made.bmp(100, 100, bytes(300)), InvalidImage, BROKEN),
        "BMP with a header of 4 GB": (b"BM" + bytes(12) + b"\xff\xff\xff\xff" + bytes(99), InvalidImage, ""),
        "TIFF without edges": (made.tiff(gray(0, 0, 1), b"x"), InvalidImage, ""),
        "TIFF without tags": (made.tiff({}), InvalidImage, ""),
        "TIFF with its directory beyond the end": (b"II*\0\xff\xff\xff\x7f", InvalidImage, ""),
        "TIFF with strips beyond the end": (made.tiff(gray(8, 8, 99) | {273: 2**31}, b"x"), InvalidImage, BROKEN),
        "TIFF with a strip of 4 GB": (made.tiff(gray(8, 8, 2**32 - 1), b"x"), InvalidImage, BROKEN),
        "TIFF of 65535 samples": (made.tiff(gray(8, 8, 9) | {277: 65535}, squeezed), InvalidImage, ""),
        "TIFF of unknown compression": (made.tiff(gray(8, 8, 64, 12345), bytes(64)), InvalidImage, ""),
        "TIFF of floats, cut short": (_float_tiff(0.5)[:60], InvalidImage, ""),
        "WEBP without image": (b"RIFF\x04\0\0\0WEBP", InvalidImage, "WEBP"),
        "WEBP, lying length": (b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff", InvalidImage, BROKEN),
        "JPEG without image": (b"\xff\xd8\xff\xd9", InvalidImage, "JPEG"),
        "JPEG without edges": (made.jpeg_of_edges(0, 0), InvalidImage, ""),
        "JPEG without width": (made.jpeg_of_edges(0, 9), InvalidImage, ""),
        "JPEG without quantisation": (jpeg.replace(b"\xff\xdb", b"\xff\xec"), InvalidImage, BROKEN),
        "JPEG, lossless": (jpeg.replace(b"\xff\xc0", b"\xff\xc3"), InvalidImage, ""),
    }  # fmt: skip


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


def _float_tiff(value: float) -> bytes:
    """Of three floats: 0, 1, and this value."""
    image = Image.new("F", (3, 1))
    for x, level in enumerate((0.0, 1.0, value)):
        image.putpixel((x, 0), level)
    return save(image, "TIFF")


BROKEN_FILES = broken()


@pytest.mark.parametrize(("data", "error_class", "words"), BROKEN_FILES.values(), ids=list(BROKEN_FILES))
async def test_broken_files(gate: ImageGate, data: bytes, error_class: type[RequestError], words: str) -> None:
    await check_refused(gate, data, error_class, words)
    await check_good_image(gate)


PARTS = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("image_format", FORMATS)
async def test_files_cut_short(gate: ImageGate, image_format: str, part: float) -> None:
    data = save(noise(), image_format)
    await check_refused(gate, data[: int(len(data) * part)], InvalidImage, "")
    await check_good_image(gate)


# --- odd, and fine


def odd() -> dict[str, tuple[bytes, tuple[int, ...], int]]:
    """Files, the colour at their top left, and how far it may be off."""
    jpeg, image = save(red(), "JPEG"), save(red())
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, *RED])
    cmyk = save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")
    strip, tile = made.squeezed(64), made.squeezed(256)
    return {
        "JPEG and ZIP": (jpeg + made.zipped("a.js", b"secret"), RED, 3),
        "JPEG and a video behind it": (jpeg + b"\xff\xda" * 5000, RED, 3),
        "JPEG and HTML in a comment": (made.jpeg_with(made.jpeg_segment(0xFE, b"<script>secret</script>")), RED, 3),
        "GIF and JavaScript": (save(red(), "GIF").replace(b"GIF87a", b"GIF89a") + b"/*secret*/=1;alert(1)", RED, 0),
        "PNG and HTML": (png_of_red(png_chunk(b"tEXt", b"x\0<script>secret</script>")), RED, 0),
        "PNG and HTML behind": (image + b"<script>secret</script>", RED, 0),
        "PNG and zeros behind": (image + bytes(1_000_000), RED, 0),
        "PNG and PHP in its palette": (save(palette) + b"<?php secret ?>", RED, 0),
        "BMP and a program behind": (save(red(), "BMP") + b"\x7fELF", RED, 0),
        "PNG that inflates to much more": (
            made.png(2, 2, pixels=(b"\0" + bytes(RED) * 2) * 2 + bytes(10**7)), RED, 0,
        ),
        "PNG with too few rows": (made.png(100, 100, pixels=b"\0" + bytes(RED) * 100), RED, 0),  # the rest is black
        "PNG with a text that isn't UTF-8": (png_of_red(png_chunk(b"iTXt", b"x\0\0\0\0\0\xff\xfe")), RED, 0),
        "PNG of ten thousand chunks": (png_of_red(*[png_chunk(b"abCd", b"")] * 10_000), RED, 0),
        "PNG with an unknown chunk": (png_of_red(png_chunk(b"seCr", b"secret")), RED, 0),
        "PNG with a broken profile": (save(red(), icc_profile=b"secret" * 99), RED, 0),
        "PNG with a profile of other channels": (save(red(), icc_profile=made.lab_profile()), RED, 2),
        "PNG with a profile cut short": (save(red(), icc_profile=made.srgb_profile()[:200]), RED, 2),
        "JPEG with a profile for gray": (save(red(), "JPEG", icc_profile=_gray_profile()), RED, 3),
        "animated GIF": (_animation("GIF"), RED, 0),
        "animated WEBP": (_animation("WEBP", lossless=True), RED, 0),
        "animated PNG": (made.apng(RED, (0, 0, 255)), RED, 0),
        "TIFF of two pages": (_animation("TIFF"), RED, 0),
        "JPEG of two images": (_animation("MPO"), RED, 3),
        "CMYK": (save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), RED, 0),
        "CMYK, inverted as Adobe does": (cmyk, RED, 3),
        "16 bits": (save(Image.new("I;16", (8, 8), 32768)), (128,) * 3, 1),
        "16 bits a colour": (made.png(1, 1, depth=16, pixels=b"\0\xff\xff\0\0\0\0"), RED, 0),
        "1 bit": (save(Image.new("1", (9, 9), 1)), (255,) * 3, 0),
        "1 bit, TIFF of a fax": (save(Image.new("1", (9, 9), 1), "TIFF", compression="group4"), (255,) * 3, 0),
        "palette": (save(palette), RED, 0),
        "palette with transparency": (save(palette, transparency=1), (255,) * 3, 0),
        "palette half transparent": (save(palette, transparency=b"\xff\x80"), (255, 127, 127), 1),
        "palette too short for its pixels": (_short_palette(), (0, 0, 0), 0),
        "gray with transparency": (save(Image.new("LA", (8, 8), (0, 0))), (255,) * 3, 0),
        "one colour transparent": (save(red(), transparency=RED), (255,) * 3, 0),
        "float TIFF": (_float_tiff(0.5), (0, 0, 0), 0),
        "float TIFF with NaN": (_float_tiff(math.nan), (0, 0, 0), 0),
        "TIFF whose next directory is itself": (_looping_tiff(), RED, 0),
        "TIFF with rows of 2^31": (
            made.tiff(made.gray_tags(8, 8, len(strip)) | {278: 2**31 - 1}, strip), (0, 0, 0), 0,
        ),
        "TIFF in small tiles": (made.tiff(made.tile_tags(16, len(tile)), tile), (0, 0, 0), 0),
        "BigTIFF": (save(red(), "TIFF", big_tiff=True), RED, 0),
        "EXIF of loops": (made.jpeg_with(made.jpeg_segment(0xE1, made.exif_of_loops())), RED, 3),
        "EXIF of huge claims": (made.jpeg_with(made.jpeg_segment(0xE1, made.exif_of_claims())), RED, 3),
        "EXIF of nonsense": (save(red(), "JPEG", exif=b"Exif\0\0secret"), RED, 3),
        "EXIF with an orientation of 99": (save(red(), "JPEG", exif=_exif(99)), RED, 3),
        "EXIF with an orientation in words": (save(red(), "JPEG", exif=made.exif_of_words()), RED, 3),
        "XMP of a million entities": (save(red(), "JPEG", xmp=b"<x>" + b"&a;" * 20_000 + b"</x>"), RED, 3),
        "PNG, EXIF of loops": (png_of_red(png_chunk(b"eXIf", made.exif_of_loops()[6:])), RED, 0),
        "JPEG of 90 scans": (made.jpeg_of_scans(64, 90), (0, 0, 0), 0),
        "JPEG, progressive": (save(red(), "JPEG", progressive=True), RED, 3),
        "JPEG with restarts": (save(red(), "JPEG", restart_marker_blocks=1), RED, 3),
        "JPEG with a segment of no length": (made.jpeg_with(b"\xff\xe0\0\0"), RED, 3),
        "JPEG without tables of its own": (jpeg.replace(b"\xff\xc4", b"\xff\xec"), RED, 3),  # the standard's hold
        "JPEG of a thousand comments": (made.jpeg_with(made.jpeg_segment(0xFE, b"x") * 1000), RED, 3),
        "BMP from the top": (made.bmp(1, -2, b"\0\0\xff\0\xff\0\0\0"), RED, 0),
        "one pixel": (save(red((1, 1))), RED, 0),
        "one pixel wide": (save(red((1, 20_000))), RED, 0),
    }  # fmt: skip


def _animation(image_format: str, **options: Any) -> bytes:
    blue = Image.new("RGB", (16, 12), (0, 0, 255))
    return save(red(), image_format, save_all=True, append_images=[blue], **options)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _gray_profile() -> bytes:
    """sRGB's, which says that it is for gray."""
    return made.srgb_profile().replace(b"RGB XYZ ", b"GRAYXYZ ", 1)


def _short_palette() -> bytes:
    palette = png_chunk(b"PLTE", b"\0\0\0")
    return made.png(2, 2, palette, color=3, pixels=b"\0\7\7\0\7\7")


def _looping_tiff() -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    data = bytearray(save(red(), "TIFF", tiffinfo=tags))
    (start,) = struct.unpack_from("<I", data, 4)
    (num_entries,) = struct.unpack_from("<H", data, start)
    struct.pack_into("<I", data, start + 2 + 12 * num_entries, start)
    return bytes(data)


ODD = odd()


def with_much_beside() -> dict[str, tuple[bytes, tuple[int, ...], int]]:
    """Whole images with megabytes of texts and profiles. Not among the cases that other servers were asked."""
    long = made.squeezed(2_000_000)
    return {
        "PNG with a long text": (png_of_red(png_chunk(b"zTXt", b"x\0\0" + long)), RED, 0),
        "PNG with a long text behind": (png_of_red(end=png_chunk(b"zTXt", b"x\0\0" + long)), RED, 0),
        "PNG with a long Unicode text": (png_of_red(png_chunk(b"iTXt", b"x\0\1\0\0\0" + long)), RED, 0),
        "PNG with a large profile": (png_of_red(png_chunk(b"iCCP", b"x\0\0" + long)), RED, 2),
        "WEBP with a long history": (save(red(), "WEBP", lossless=True, xmp=b"x" * 3_000_000), RED, 0),
        "JPEG with long comments": (
            made.jpeg_with(made.jpeg_segment(0xFE, b"x" * 60_000) * 50),
            RED,
            3,
        ),
        "JPEG with a large profile": (save(red(), "JPEG", icc_profile=bytes(3_000_000)), RED, 3),
        "TIFF with a long description": (save(red(), "TIFF", description="x" * 3_000_000), RED, 0),
    }


WITH_MUCH_BESIDE = with_much_beside()


@pytest.mark.parametrize(
    ("data", "color", "tolerance"), [*ODD.values(), *WITH_MUCH_BESIDE.values()], ids=[*ODD, *WITH_MUCH_BESIDE]
)
async def test_odd_files_come_out_right(gate: ImageGate, data: bytes, color: tuple[int, ...], tolerance: int) -> None:
    image = await gate.load(ImageBytes(data), PARAM)
    assert len(image.rgb) == image.width * image.height * 3
    assert is_near(pixel(image), color, tolerance), pixel(image)


async def test_strangers_write_no_log(gate: ImageGate, caplog: pytest.LogCaptureFixture) -> None:
    """Pillow reports some broken files in its log, which Python prints where nobody listens."""
    for data, _, _ in BROKEN_FILES.values():
        with pytest.raises(RequestError):
            await gate.load(ImageBytes(data), PARAM)
    assert not caplog.records


NUM_HOSTILE_IMAGES = len(BOMBS) + len(BROKEN_FILES) + len(FORMATS) * len(PARTS) + len(ODD)

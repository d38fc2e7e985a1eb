"""Image files that mean harm, or are only odd, made byte by byte where no library would write them."""

import asyncio
import gzip
import io
import resource
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms

from serve_app.config.http import ImageConfig
from serve_app.errors import RequestError
from serve_app.images.gate import ImageBytes, ImageGate

RED = (255, 0, 0)


def save(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def red(size: tuple[int, int] = (16, 12)) -> Image.Image:
    return Image.new("RGB", size, RED)


def noise(size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.effect_noise(size, 90).convert("RGB")


# --- PNG

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, *chunks: bytes, depth: int = 8, color: int = 2, pixels: bytes = b"\0", end: bytes = b""
) -> bytes:
    """A PNG of these edges with what `pixels` inflates to, `chunks` before it and `end` behind it."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    data = png_chunk(b"IDAT", zlib.compress(pixels))
    return PNG_MAGIC + header + b"".join(chunks) + data + end + png_chunk(b"IEND", b"")


def png_of_red(*chunks: bytes, end: bytes = b"") -> bytes:
    return png(2, 2, *chunks, pixels=(b"\0" + bytes(RED) * 2) * 2, end=end)


def squeezed(num_bytes: int) -> bytes:
    """A zlib stream that inflates to so many zeros, made in pieces, so that the making takes no memory."""
    squeeze, piece = zlib.compressobj(9), bytes(100_000)
    whole, rest = divmod(num_bytes, len(piece))
    pieces = [squeeze.compress(piece) for _ in range(whole)]
    return b"".join([*pieces, squeeze.compress(piece[:rest]), squeeze.flush()])


def apng(*colors: tuple[int, int, int]) -> bytes:
    return save(Image.new("RGB", (16, 12), colors[0]), save_all=True, duration=50,
                append_images=[Image.new("RGB", (16, 12), color) for color in colors[1:]])  # fmt: skip


# --- GIF


def gif(screen: tuple[int, int], frame: tuple[int, int], disposal: int = 0, transparent: bool = False) -> bytes:
    """A black GIF whose one frame breaks off after a pixel."""
    header = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    control = b"\x21\xf9\x04" + bytes([disposal << 2 | transparent, 0, 0, 0, 0])
    return header + control + b"\x2c" + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\x02\x02\x4c\x01\0\x3b"


# --- BMP


def bmp(width: int, height: int, pixels: bytes = b"", bits: int = 24, compression: int = 0) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(pixels), 0, 0, 54) + header + pixels


# --- WebP


def riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def webp(width: int, height: int, is_animated: bool) -> bytes:
    """An extended WebP with this canvas and an 8 x 8 image on it."""
    still = save(red((8, 8)), "WEBP")[12:]
    edges = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    canvas = bytes([2 * is_animated, 0, 0, 0]) + edges
    body = b"WEBP" + riff_chunk(b"VP8X", canvas)
    if is_animated:
        frame = bytes(6) + (7).to_bytes(3, "little") * 2 + bytes(4) + still
        body += riff_chunk(b"ANIM", bytes(6)) + riff_chunk(b"ANMF", frame)
    else:
        body += still
    return b"RIFF" + struct.pack("<I", len(body)) + body


# --- TIFF

SHORT, LONG = 3, 4
Tags = dict[int, int]
TIFF_DEFLATE = 8


def tiff(tags: Tags, data: bytes = b"", first: tuple[tuple[int, int], ...] = (), next_at: int = 0) -> bytes:
    """A little-endian TIFF: `data` at 8, then one directory, with the entries of `first` before those of `tags`."""
    entries = [*first, *sorted(tags.items())]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", tag, LONG, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + struct.pack("<I", next_at)


def gray_tags(width: int, height: int, num_bytes: int, compression: int = TIFF_DEFLATE) -> Tags:
    return {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: height, 279: num_bytes}


def tile_tags(edge: int, num_bytes: int) -> Tags:
    """Of an 8 x 8 image in one tile."""
    return {256: 8, 257: 8, 258: 8, 259: TIFF_DEFLATE, 262: 1, 277: 1, 322: edge, 323: edge, 324: 8, 325: num_bytes}


def big_tiff(tags: Tags, data: bytes) -> bytes:
    """The same as BigTIFF (libtiff's design: 64-bit counts and offsets)."""
    header = b"II+\0\x08\0\0\0" + struct.pack("<Q", 16 + len(data))
    entries = b"".join(struct.pack("<HHQQ", tag, LONG, 1, value) for tag, value in sorted(tags.items()))
    return header + data + struct.pack("<Q", len(tags)) + entries + bytes(8)


# --- JPEG


def jpeg_segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", 2 + len(body)) + body


def jpeg_with(segment: bytes) -> bytes:
    """A red JPEG with this segment right behind its first marker."""
    data = save(red(), "JPEG")
    return data[:2] + segment + data[2:]


def jpeg_of_edges(width: int, height: int) -> bytes:
    """A JPEG whose frame header claims these edges."""
    data = bytearray(save(red(), "JPEG"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, height, width)
    return bytes(data)


def jpeg_of_scans(edge: int, num_scans: int, before_each: bytes = b"") -> bytes:
    """A progressive JPEG with so many scans more, each of which says in a few bytes that nothing changes."""
    data = save(Image.new("L", (edge, edge)), "JPEG", progressive=True)
    table = jpeg_segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0")  # one code: 2^14 blocks or more end here
    num_runs = -(-(((edge + 7) // 8) ** 2) // 32767)
    bits = ("0" + "1" * 14) * num_runs
    bits += "1" * (-len(bits) % 8)
    code = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    scan = before_each + jpeg_segment(0xDA, b"\x01\x01\0\x01\x3f\0") + code
    return data[: data.rindex(b"\xff\xda")] + table + scan * num_scans + b"\xff\xd9"


def exif_of_loops() -> bytes:
    """An EXIF block whose directories, and their sub-directories, all point to the first."""
    entries = b"".join(struct.pack("<HHII", tag, LONG, 1, 8) for tag in (0x8769, 0x8825, 0xA005))
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + struct.pack("<H", 3) + entries + struct.pack("<I", 8)


def exif_of_words() -> bytes:
    """An EXIF block whose orientation is text."""
    entry = struct.pack("<HHI4s", 0x0112, 2, 4, b"up!\0")
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + bytes(4)


def exif_of_claims() -> bytes:
    """An EXIF block whose orientation claims four billion values, far beyond its end."""
    entry = struct.pack("<HHII", 0x0112, SHORT, 0xFFFFFFFF, 0xFFFFFFF0)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + struct.pack("<H", 1) + entry + bytes(4)


# --- AVIF


def avif_of_edges(width: int, height: int) -> bytes:
    """An AVIF whose `ispe` property claims these edges."""
    data = bytearray(save(red((64, 64)), "AVIF"))
    struct.pack_into(">II", data, data.index(b"ispe") + 8, width, height)
    return bytes(data)


# --- two formats in one file


def zipped(name: str, data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def packed(data: bytes) -> bytes:
    return gzip.compress(data)


def lab_profile() -> bytes:
    return bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes())


def srgb_profile() -> bytes:
    return bytes(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())


# --- all at once


def detonate(folder: str) -> None:
    """Load every file of a folder; print how many were refused, and by how many MiB this process's peak has grown."""
    gate = ImageGate(ImageConfig())

    async def is_refused(data: bytes) -> bool:
        try:
            await gate.load(ImageBytes(data), "image")
        except RequestError:
            return True
        return False

    async def num_refused() -> int:
        return sum([await is_refused(data) for data in files])

    files = [path.read_bytes() for path in Path(folder).iterdir()]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(asyncio.run(num_refused()), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)

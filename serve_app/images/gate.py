"""The gate for images: takes bytes from strangers and returns small 8-bit RGB images, or an error that says why not.

Owns what an image may be (format, bytes, pixels). `fetch.py` owns URLs, and `pixels.py` owns the conversion. Knows
nothing about models: no engine ever parses a stranger's bytes.
"""

import asyncio
import logging
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import Final
from urllib.parse import unquote_to_bytes

import pybase64
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError, features

from serve_app.config.http import ImageConfig
from serve_app.errors import ImageTooLarge, InvalidImage, RequestError
from serve_app.images.bombs import MAX_JPEG_SCANS, MAX_PNG_CHUNKS, num_jpeg_scans, num_png_chunks, num_tile_pixels
from serve_app.images.fetch import ImageFetcher
from serve_app.images.kinds import kind_of
from serve_app.images.pixels import PILLOW_ERRORS, plain
from serve_app.messages import ImageEdge, RgbImage


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """An image by its address: http, https, or a data URI."""

    url: str = field(repr=False)  # sources stay out of logs: addresses carry tokens, bytes are private


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """An image's file, as uploaded."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ImageBase64:
    """An image's file in base64: standard or URL-safe, with or without padding, white space allowed."""

    b64: str = field(repr=False)


ImageSource = ImageUrl | ImageBytes | ImageBase64

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF") + (("AVIF",) if features.check("avif") else ())
_ACCEPTED: Final = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]} are taken"

_JPEG_START: Final = b"\xff\xd8\xff"
_PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_URL_SCHEME: Final = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]{0,31}:")
_MAX_METADATA_BYTES: Final = 16 << 20  # inflated; editors write histories of some MB
_TO_STANDARD_BASE64: Final = bytes.maketrans(b"-_", b"+/")


def source_from_text(text: str) -> ImageSource:
    """The source that a client wrote as one string: an address or data URI if it has a scheme, base64 otherwise."""
    return ImageUrl(text) if _URL_SCHEME.match(text) else ImageBase64(text)


class ImageGate:
    """Turns sources into images, decoding on `config.num_threads` threads. One per process.

    It configures Pillow for the whole process: the gate's pixel limit, strict, without warnings and logs. Python
    keeps the text of every distinct warning for the process's life, and strangers must not write to our logs.
    """

    def __init__(self, config: ImageConfig) -> None:
        # Pillow refuses from twice its limit on. It also checks canvases that it makes before it tells us any size:
        # otherwise 43 bytes of GIF fill 4 GB while they are opened, and a tile of a tiny TIFF can have any size.
        Image.MAX_IMAGE_PIXELS = (config.max_image_pixels + 1) // 2
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        PngImagePlugin.MAX_TEXT_CHUNK = _MAX_METADATA_BYTES  # of a text or colour profile, inflated
        warnings.filterwarnings("ignore", module=r"PIL\.")
        logging.getLogger("PIL").setLevel(logging.CRITICAL)
        self._config = config
        self._fetcher = ImageFetcher(config)
        self._threads = ThreadPoolExecutor(config.num_threads, thread_name_prefix="image")

    async def load(self, source: ImageSource, param: str, edge: ImageEdge | None = None) -> RgbImage:
        """The image, upright, opaque, sRGB, its longest edge at most `max_edge_px`; an animation's first frame.

        With `edge`, the size to which the model will shrink it, it has at most three times that size.

        `param` names the request's field in errors: `InvalidImage`, `ImageTooLarge`, and for URLs
        `ImageUrlRefused` and `ImageFetchFailed`. Cancelling ends a fetch; a running decode finishes unseen.
        """
        if isinstance(source, ImageUrl) and not _is_data_uri(source.url):
            source = ImageBytes(await self._fetcher.fetch(source.url.strip(), param))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _image, source, self._config, param, edge)

    async def close(self) -> None:
        """End the fetches and drop the waiting decodes; a running one ends by itself."""
        await self._fetcher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)


def _image(source: ImageSource, config: ImageConfig, param: str, edge: ImageEdge | None) -> RgbImage:
    try:
        data = _read(source, config)
        if len(data) > config.max_image_bytes:
            raise _too_many_bytes(len(data), config)
        if not data:
            raise InvalidImage(f"the image is empty (0 bytes): send a file; {_ACCEPTED}")
        return _decode(data, config, edge)
    except RequestError as exc:
        raise exc.in_field(param) from exc


def _read(source: ImageSource, config: ImageConfig) -> bytes:
    match source:
        case ImageBytes(data):
            return data
        case ImageBase64(b64):
            return _from_base64(b64, config)
        case ImageUrl(url):
            return _from_data_uri(url.strip(), config)


def _is_data_uri(url: str) -> bool:
    return url.lstrip()[:5].lower() == "data:"


def _from_data_uri(uri: str, config: ImageConfig) -> bytes:
    """Decode it (RFC 2397) and ignore its media type: the bytes say what they are."""
    header, comma, payload = uri.partition(",")
    if not comma:
        raise InvalidImage("the data URI has no comma: write data:image/png;base64,...")
    if header.rpartition(";")[2].strip().lower() == "base64":
        if "%" in payload:
            payload = unquote_to_bytes(payload).decode("latin-1")
        return _from_base64(payload, config)
    if len(payload) > 3 * config.max_image_bytes:  # %XX is a byte in three characters
        raise _too_many_bytes(len(payload) // 3, config)
    return unquote_to_bytes(payload)


def _from_base64(b64: str, config: ImageConfig) -> bytes:
    if len(b64) * 3 // 4 <= config.max_image_bytes:
        with suppress(ValueError):  # most clients send this spelling; the others are normalized below
            return pybase64.b64decode(b64, validate=True)
    try:
        digits = b64.encode("ascii").translate(_TO_STANDARD_BASE64, b" \t\r\n\f").rstrip(b"=")
        num_bytes = len(digits) * 3 // 4
        if num_bytes > config.max_image_bytes:
            raise _too_many_bytes(num_bytes, config)
        return pybase64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except ValueError as exc:
        raise InvalidImage(
            "the image isn't base64: send the file's bytes as base64, "
            "or an address that begins with http://, https:// or data:"
        ) from exc


def _too_many_bytes(num_bytes: int, config: ImageConfig) -> RequestError:
    return ImageTooLarge(
        f"the image has {num_bytes} bytes and the limit is {config.max_image_bytes}: send a smaller one"
    )


def _decode(data: bytes, config: ImageConfig, edge: ImageEdge | None) -> RgbImage:
    _check_parts(data)
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image, config)
            _check_tiles(image, data, config)
            return plain(image, config, edge)
    except Image.DecompressionBombError as exc:
        raise ImageTooLarge(
            f"the image has more than {config.max_image_pixels} pixels, the limit: send it smaller"
        ) from exc
    except UnidentifiedImageError as exc:
        raise InvalidImage(f"this looks like {_looks_like(data)}: {_ACCEPTED}") from exc
    except PILLOW_ERRORS as exc:
        raise InvalidImage(f"the image is broken or cut short ({len(data)} bytes came): send the whole file") from exc


def _check_pixels(image: Image.Image, config: ImageConfig) -> None:
    num_pixels = image.width * image.height
    if num_pixels > config.max_image_pixels:
        raise ImageTooLarge(
            f"the image has {image.width} x {image.height} = {num_pixels} pixels "
            f"and the limit is {config.max_image_pixels}: send it smaller"
        )


def _check_parts(data: bytes) -> None:
    """Check before the file is opened, because opening reads most of its parts."""
    if data.startswith(_JPEG_START) and num_jpeg_scans(data) > MAX_JPEG_SCANS:
        raise InvalidImage(f"the JPEG has more than {MAX_JPEG_SCANS} scans: save it anew, with ten or so at most")
    if data.startswith(_PNG_START) and num_png_chunks(data) > MAX_PNG_CHUNKS:
        raise InvalidImage(f"the PNG has more than {MAX_PNG_CHUNKS} chunks: save it anew, with fewer")


def _check_tiles(image: Image.Image, data: bytes, config: ImageConfig) -> None:
    if image.format == "TIFF" and num_tile_pixels(image, data) > config.max_image_pixels:
        raise ImageTooLarge(
            f"the TIFF's tiles have more than {config.max_image_pixels} pixels, the limit: save it with smaller ones"
        )


def _looks_like(data: bytes) -> str:
    kind = kind_of(data)
    if kind is None:
        return "no image"
    return f"a broken {kind.name}" if kind.media_type else kind.name

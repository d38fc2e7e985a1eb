"""The gate for images: takes bytes from strangers and returns small 8-bit RGB images, or an error that says why not.

Owns what an image may be (format, bytes, pixels). `fetch.py` owns URLs, `pixels.py` owns the conversion, and
`decoder_processes.py` decodes what the extra `images` brings. Knows nothing about models: no engine ever parses a
stranger's bytes.
"""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from typing import Final
from urllib.parse import unquote_to_bytes

import pybase64
from PIL import Image

from serve_app.config.http import ImageConfig
from serve_app.errors import ImageTooLarge, InvalidImage, RequestError
from serve_app.images.bombs import MAX_JPEG_SCANS, MAX_PNG_CHUNKS, num_jpeg_scans, num_png_chunks, num_tile_pixels
from serve_app.images.decoder_processes import DecoderProcesses
from serve_app.images.fetch import ImageFetcher
from serve_app.images.formats import FORMATS, accepted, extra_formats
from serve_app.images.jxl_header import jxl_header
from serve_app.images.kinds import kind_of
from serve_app.images.pixels import make_pillow_strict, plain
from serve_app.images.refusals import check_pixels, in_our_words
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

_JPEG_START: Final = b"\xff\xd8\xff"
_PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_URL_SCHEME: Final = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]{0,31}:")
_MAX_JXL_CHANNELS: Final = 4  # beside gray or RGB; each costs as much as a colour, and none but transparency is shown
_TO_STANDARD_BASE64: Final = bytes.maketrans(b"-_", b"+/")


def source_from_text(text: str) -> ImageSource:
    """The source that a client wrote as one string: an address or data URI if it has a scheme, base64 otherwise."""
    return ImageUrl(text) if _URL_SCHEME.match(text) else ImageBase64(text)


class ImageGate:
    """Turns sources into images, decoding on `config.num_threads` threads. One per process.

    It configures Pillow for the whole process.
    """

    def __init__(self, config: ImageConfig) -> None:
        make_pillow_strict(config)
        self._config = config
        self._fetcher = ImageFetcher(config)
        self._processes = DecoderProcesses(config)
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
        return await loop.run_in_executor(self._threads, self._image, source, param, edge)

    async def close(self) -> None:
        """End the fetches and drop the waiting decodes; a running one ends by itself."""
        await self._fetcher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._processes.close()

    def _image(self, source: ImageSource, param: str, edge: ImageEdge | None) -> RgbImage:
        try:
            data = _read(source, self._config)
            if len(data) > self._config.max_image_bytes:
                raise _too_many_bytes(len(data), self._config)
            if not data:
                raise InvalidImage(f"the image is empty (0 bytes): send a file; {accepted()}")
            kind = kind_of(data)
            if kind is None or kind.extra_format not in extra_formats():
                return _decode(data, self._config, edge)
            if kind.extra_format == "JXL":
                _check_jxl(data, self._config)
            return self._processes.decode(data, kind.extra_format, edge)
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
    with in_our_words(data, config), Image.open(BytesIO(data), formats=FORMATS) as image:
        check_pixels(image.size, config)
        _check_tiles(image, data, config)
        return plain(image, config, edge)


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


def _check_jxl(data: bytes, config: ImageConfig) -> None:
    """Check before the file is opened, because opening decodes all of it."""
    with in_our_words(data, config):
        header = jxl_header(data)
    check_pixels((header.width, header.height), config)
    if header.is_animated:
        raise InvalidImage("the JPEG XL is an animation: send its first image as a file of its own")
    if header.is_cmyk:
        raise InvalidImage("the JPEG XL is in CMYK: save it in RGB")
    if header.is_deep_gray and header.num_extra_channels:  # the library mixes its bytes up
        raise InvalidImage("the JPEG XL is gray with more than 8 bits and transparency: save it in RGB")
    if header.num_extra_channels > _MAX_JXL_CHANNELS:
        raise InvalidImage(
            f"the JPEG XL has {header.num_extra_channels} channels beside its colours: keep transparency at most"
        )

"""The gate for pictures: bytes from strangers in, small, decoded, 8-bit RGB out, or an error that says why not.

Owns what a picture may be (format, bytes, pixels) and how it is made plain; `image_fetch.py` owns URLs.
Knows nothing about models: no engine ever parses a stranger's bytes.
"""

import asyncio
import base64
import math
import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from typing import Final, cast
from urllib.parse import unquote_to_bytes

from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError, features

from serve_app.config import ImageConfig
from serve_app.errors import ImageTooLarge, InvalidImage, ServeAppError
from serve_app.image_fetch import ImageFetcher
from serve_app.messages import Picture, PictureEdge


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """A picture by its address: http, https, or a data URI."""

    url: str = field(repr=False)  # sources stay out of logs: addresses carry tokens, bytes are private


@dataclass(frozen=True, slots=True)
class ImageBytes:
    """A picture's file, as uploaded."""

    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ImageBase64:
    """A picture's file in base64: standard or URL-safe, with or without padding, white space allowed."""

    b64: str = field(repr=False)


ImageSource = ImageUrl | ImageBytes | ImageBase64

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF") + (("AVIF",) if features.check("avif") else ())
_ACCEPTED: Final = f"{', '.join(FORMATS[:-1])} and {FORMATS[-1]} are taken"
_HAS_COLOR_PROFILES: Final = features.check("littlecms2")

# What Pillow is known to raise on hostile bytes, by base class; tests/test_images.py fuzzes for others.
_PILLOW_ERRORS: Final = (
    ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, LookupError, MemoryError, OSError,
    RuntimeError, SyntaxError, TypeError, ValueError, Warning, struct.error, zlib.error, ImageCms.PyCMSError,
    Image.DecompressionBombError,
)  # fmt: skip

_TURNS: Final = {  # EXIF orientation to what sets it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION: Final = 0x0112

_LOOKS_LIKE: Final = (
    (rb"\xff\xd8\xff", "a broken JPEG"),
    (rb"\x89PNG", "a broken PNG"),
    (rb"RIFF....WEBP", "a broken WEBP"),
    (rb"GIF8", "a broken GIF"),
    (rb"BM", "a broken BMP"),
    (rb"II[*+]\0|MM\0[*+]", "a broken TIFF"),
    (rb"....ftyp(avif|avis)", "a broken AVIF"),
    (rb"....ftyp(hei|hev|mif1|msf1)", "HEIC"),
    (rb"....ftyp", "a video"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL"),
    (rb"8BPS", "a Photoshop file"),
    (rb"%PDF", "a PDF"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "an archive"),
    (rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.{0,400}?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg", "SVG"),
    (rb"(\xef\xbb\xbf)?\s*<(!doctype )?html", "an HTML page"),
    (rb"(\xef\xbb\xbf)?\s*<\?xml", "XML"),
    (rb"[\s\x20-\x7e\x80-\xff]*$", "text"),
)

_URL_SCHEME: Final = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*:")
_TO_STANDARD_BASE64: Final = bytes.maketrans(b"-_", b"+/")


def source_from_text(text: str) -> ImageSource:
    """A picture given as one string: an address or data URI where it begins with a scheme, base64 otherwise."""
    return ImageUrl(text) if _URL_SCHEME.match(text) else ImageBase64(text)


class ImageGate:
    """Turns sources into pictures, decoding on `config.num_threads` threads. One per process.

    Switches Pillow's own pixel limit and its warnings off and its strictness on, process-wide: the gate's limit is
    checked from the header, and Python keeps every distinct warning's text for as long as the process lives.
    """

    def __init__(self, config: ImageConfig) -> None:
        Image.MAX_IMAGE_PIXELS = None
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        warnings.filterwarnings("ignore", module=r"PIL\.")
        self._config = config
        self._fetcher = ImageFetcher(config)
        self._threads = ThreadPoolExecutor(config.num_threads, thread_name_prefix="image")

    async def load(self, source: ImageSource, param: str, edge: PictureEdge | None = None) -> Picture:
        """The picture, upright, opaque, sRGB, its longest edge at most `max_edge_px`; of an animation, frame one.

        With `edge`, to which its reader will shrink it anyway, it comes at twice that size at most.

        `param` names the request's field in errors: `InvalidImage`, `ImageTooLarge`, and for URLs
        `ImageUrlRefused` and `ImageFetchFailed`. Cancelling ends a fetch, and lets a decode that runs finish
        unseen.
        """
        if isinstance(source, ImageUrl) and not _is_data_uri(source.url):
            source = ImageBytes(await self._fetcher.fetch(source.url.strip(), param))
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _picture, source, self._config, param, edge)

    async def close(self) -> None:
        """Drop what waits; a running decode ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _picture(source: ImageSource, config: ImageConfig, param: str, edge: PictureEdge | None) -> Picture:
    data = _read(source, config, param)
    if len(data) > config.max_image_bytes:
        raise _too_many_bytes(len(data), config, param)
    if not data:
        raise InvalidImage(f"{param}: the picture is empty (0 bytes): send a file; {_ACCEPTED}", param)
    return _decode(data, config, param, edge)


def _read(source: ImageSource, config: ImageConfig, param: str) -> bytes:
    match source:
        case ImageBytes(data):
            return data
        case ImageBase64(b64):
            return _from_base64(b64, config, param)
        case ImageUrl(url):
            return _from_data_uri(url.strip(), config, param)


def _is_data_uri(url: str) -> bool:
    return url.lstrip()[:5].lower() == "data:"


def _from_data_uri(uri: str, config: ImageConfig, param: str) -> bytes:
    """RFC 2397. The media type is not believed: the bytes say what they are."""
    header, comma, payload = uri.partition(",")
    if not comma:
        raise InvalidImage(f"{param}: the data URI has no comma: write data:image/png;base64,...", param)
    if header.rpartition(";")[2].strip().lower() == "base64":
        if "%" in payload:
            payload = unquote_to_bytes(payload).decode("latin-1")
        return _from_base64(payload, config, param)
    if len(payload) > 3 * config.max_image_bytes:  # %XX is a byte in three characters
        raise _too_many_bytes(len(payload) // 3, config, param)
    return unquote_to_bytes(payload)


def _from_base64(b64: str, config: ImageConfig, param: str) -> bytes:
    try:
        digits = b64.encode("ascii").translate(_TO_STANDARD_BASE64, b" \t\r\n\f").rstrip(b"=")
        num_bytes = len(digits) * 3 // 4
        if num_bytes > config.max_image_bytes:
            raise _too_many_bytes(num_bytes, config, param)
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except ValueError as exc:
        raise InvalidImage(
            f"{param}: the picture isn't base64: send the file's bytes as base64, "
            "or an address that begins with http://, https:// or data:",
            param,
        ) from exc


def _too_many_bytes(num_bytes: int, config: ImageConfig, param: str) -> ServeAppError:
    return ImageTooLarge(
        f"{param}: the picture has {num_bytes} bytes and the limit is {config.max_image_bytes}: send a smaller one",
        param,
    )


def _decode(data: bytes, config: ImageConfig, param: str, edge: PictureEdge | None) -> Picture:
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check_pixels(image, config, param)
            return _plain(image, config, edge)
    except UnidentifiedImageError as exc:
        raise InvalidImage(f"{param}: this looks like {_looks_like(data)}: {_ACCEPTED}", param) from exc
    except _PILLOW_ERRORS as exc:
        raise InvalidImage(
            f"{param}: the picture is broken or cut short ({len(data)} bytes came): send the whole file", param
        ) from exc


def _check_pixels(image: Image.Image, config: ImageConfig, param: str) -> None:
    num_pixels = image.width * image.height
    if num_pixels > config.max_image_pixels:
        raise ImageTooLarge(
            f"{param}: the picture has {image.width} x {image.height} = {num_pixels} pixels "
            f"and the limit is {config.max_image_pixels}: send it smaller",
            param,
        )


def _looks_like(data: bytes) -> str:
    start = data[:1024]
    matches = (name for magic, name in _LOOKS_LIKE if re.match(magic, start, re.IGNORECASE | re.DOTALL))
    return next(matches, "no picture")


def _plain(image: Image.Image, config: ImageConfig, edge: PictureEdge | None) -> Picture:
    """Cheapest first: the JPEG decoder shrinks while it decodes, and all else works on the small picture."""
    size = _fitting(image.size, config.max_edge_px, edge)
    # Twice the size, so that the last step is a good filter's; where `edge` is given, the last step is the model's.
    image.draft(None, size if edge else (size[0] * 2, size[1] * 2))
    image.load()
    orientation, profile = _orientation(image), image.info.get("icc_profile")
    small = _eight_bit(image)
    if small.size != size:
        small = small.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    rgb = _opaque(small, profile, config.background)
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
    return Picture(rgb.width, rgb.height, rgb.tobytes())


def _fitting(size: tuple[int, int], max_edge_px: int, edge: PictureEdge | None) -> tuple[int, int]:
    scale = min(1.0, max_edge_px / max(size))
    if edge is not None:
        scale = min(scale, 2 * edge.px / (min(size) if edge.which == "shortest" else max(size)))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(_ORIENTATION)
    except _PILLOW_ERRORS:  # broken metadata doesn't spoil the picture
        return None


def _eight_bit(image: Image.Image) -> Image.Image:
    """One of L, LA, RGB, RGBA, CMYK: 8 bits a channel, no palette, no colour that stands for transparent."""
    if image.mode == "F" or image.mode.startswith("I"):
        return _eight_bit_gray(image)
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        return image.convert("RGBA")
    return image if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") else image.convert("RGB")


def _eight_bit_gray(image: Image.Image) -> Image.Image:
    """Deep gray scaled to 8 bits: 16-bit by its full range.

    32-bit integers and floats by the first of 1 (floats only), 255 and 65535 that holds every value; where none
    does, or some are negative, from the least value to the greatest.
    """
    deep = image if image.mode == "F" else image.convert("I")
    low, high = cast(tuple[float, float], deep.getextrema())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("brightness without bounds")
    if image.mode.startswith("I;16"):
        low, high = 0, 65535
    elif low >= 0:
        full_scales = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        low, high = 0, next((full for full in full_scales if high <= full), high)
    scale = 255 / (high - low) if high > low else 0.0
    offset = 0.5 - low * scale  # half, because the conversion cuts off
    return deep.point(lambda value: value * scale + offset).convert("L")


def _opaque(image: Image.Image, profile: object, background: tuple[int, int, int]) -> Image.Image:
    """sRGB, with what is transparent filled with `background`."""
    if image.mode not in ("LA", "RGBA"):
        return _srgb(image, profile)
    alpha = image.getchannel("A")
    color = _srgb(image.convert("L" if image.mode == "LA" else "RGB"), profile)
    canvas = Image.new("RGB", color.size, background)
    canvas.paste(color, mask=alpha)
    return canvas


def _srgb(image: Image.Image, profile: object) -> Image.Image:
    """Through the picture's own colour profile; one that is broken or for other channels is ignored."""
    if _HAS_COLOR_PROFILES and isinstance(profile, bytes) and profile:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            return converted or image.convert("RGB")
        except _PILLOW_ERRORS:
            pass
    return image.convert("RGB")

"""Converts an opened image: upright, opaque, sRGB, 8 bits a channel, and no larger than needed.

Knows nothing about its origin, the accepted formats or our errors: whatever Pillow raises goes up.
"""

import logging
import struct
import warnings
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any, Final, cast

from PIL import Image, ImageCms, ImageFile, ImageMath, PngImagePlugin, features

from serve_app.config.http import ImageConfig
from serve_app.messages import ImageEdge, RgbImage

_HAS_COLOR_PROFILES: Final = features.check("littlecms2")

# The base classes of what Pillow raises on hostile bytes; tests/images/test_gate.py fuzzes for others.
PILLOW_ERRORS: Final = (
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
_MAX_METADATA_BYTES: Final = 16 << 20  # inflated; editors write histories of some MB
_MOST_FLOAT: Final = 3.4e38  # a larger 32-bit number is infinite

# An image with an `edge` isn't resized up to this multiple of its size: bytes are cheaper than a filter here.
_MAX_UNRESIZED: Final = 1.5


def make_pillow_strict(config: ImageConfig) -> None:
    """Configure Pillow for the whole process: the gate's pixel limit, strict, without warnings and logs.

    Python keeps the text of every distinct warning for the process's life, and strangers must not write to our logs.
    """
    # Pillow refuses from twice its limit on. It also checks canvases that it makes before it tells us any size:
    # otherwise 43 bytes of GIF fill 4 GB while they are opened, and a tile of a tiny TIFF can have any size.
    Image.MAX_IMAGE_PIXELS = (config.max_image_pixels + 1) // 2
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    PngImagePlugin.MAX_TEXT_CHUNK = _MAX_METADATA_BYTES  # of a text or colour profile, inflated
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)


def plain(image: Image.Image, config: ImageConfig, edge: ImageEdge | None) -> RgbImage:
    """The cheapest step comes first: the JPEG decoder shrinks while it decodes; the rest works on a small image."""
    size = _fitting(image.size, config.max_edge_px, edge)
    # Twice the size, so that a good filter does the last step; with `edge`, the model does it.
    image.draft(None, size if edge else (size[0] * 2, size[1] * 2))
    image.load()
    orientation, profile = _orientation(image), image.info.get("icc_profile")
    small = _eight_bit(image)
    if edge is None and small.size != size:
        small = small.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    elif max(small.size) > min(config.max_edge_px, _MAX_UNRESIZED * max(size)):
        small = small.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    rgb = _opaque(small, profile, config.background)
    if orientation in _TURNS:
        rgb = rgb.transpose(_TURNS[orientation])
    return RgbImage(rgb.width, rgb.height, rgb.tobytes())


def _fitting(size: tuple[int, int], max_edge_px: int, edge: ImageEdge | None) -> tuple[int, int]:
    scale = min(1.0, max_edge_px / max(size))
    if edge is not None:
        scale = min(scale, 2 * edge.px / (min(size) if edge.which == "shortest" else max(size)))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _orientation(image: Image.Image) -> object:
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return None  # its decoder sets it upright; only a JPEG that is packed in a JPEG XL comes as it was
    try:
        return image.getexif().get(_ORIENTATION)
    except PILLOW_ERRORS:  # broken metadata doesn't spoil the image
        return None


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image as L, LA, RGB, RGBA or CMYK: 8 bits a channel, no palette, no colour that means transparent."""
    if image.mode == "F" or image.mode.startswith("I"):
        gray, key = _eight_bit_gray(image), image.info.get("transparency")
        return gray if not isinstance(key, int) else Image.merge("LA", (gray, _unlike(image, key)))
    if "transparency" in image.info or image.mode in ("PA", "La", "RGBa"):
        return image.convert("RGBA")
    return image if image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") else image.convert("RGB")


def _eight_bit_gray(image: Image.Image) -> Image.Image:
    """Deep gray scaled to 8 bits.

    16-bit gray is scaled by its full range; 32-bit integers and floats by the first of 1 (floats only), 255 and 65535
    that holds every value. If none does, or some values are negative, the range is that of the values. What is no
    number is black, as measuring programs mark pixels without a value; infinities are the range's ends.
    """
    deep = _finite(image) if image.mode == "F" else image.convert("I")
    low, high = cast(tuple[float, float], deep.getextrema())
    if image.mode.startswith("I;16"):
        low, high = 0, 65535
    elif image.format == "JXL":  # whose floats go from 0 to 1, and a little beyond where it was compressed with loss
        low, high = 0, 1
    elif low >= 0:
        full_scales = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        low, high = 0, next((full for full in full_scales if high <= full), high)
    scale = 255 / (high - low) if high > low else 0.0
    offset = 0.5 - low * scale  # half, because the conversion cuts off
    return deep.point(lambda value: value * scale + offset).convert("L")


def _finite(image: Image.Image) -> Image.Image:
    """A float image without infinities and what is no number."""
    is_finite = _mask(image, lambda value: (value > -_MOST_FLOAT) * (value < _MOST_FLOAT))
    if is_finite.getextrema() == (255, 255):
        return image
    finite = Image.new("F", image.size)
    finite.paste(image, mask=is_finite)
    low, high = cast(tuple[float, float], finite.getextrema())
    finite.paste(low, mask=_mask(image, lambda value: value <= -_MOST_FLOAT))
    finite.paste(high, mask=_mask(image, lambda value: value >= _MOST_FLOAT))
    return finite


def _unlike(image: Image.Image, key: int) -> Image.Image:
    """The transparency of a gray image whose pixels of the value `key` are transparent."""
    return _mask(image.convert("I"), lambda value: value != key).convert("L")


def _mask(image: Image.Image, is_so: Callable[[Any], Any]) -> Image.Image:
    """Where it is so, as an image of mode 1."""
    truth = ImageMath.lambda_eval(lambda operands: is_so(operands["value"]), value=image)
    return cast(Image.Image, truth).point(lambda value: value * 255).convert("L").convert("1")


def _opaque(image: Image.Image, profile: object, background: tuple[int, int, int]) -> Image.Image:
    """The image in sRGB, its transparent parts filled with `background`."""
    if image.mode not in ("LA", "RGBA"):
        return _srgb(image, profile)
    alpha = image.getchannel("A")
    color = _srgb(image.convert("L" if image.mode == "LA" else "RGB"), profile)
    canvas = Image.new("RGB", color.size, background)
    canvas.paste(color, mask=alpha)
    return canvas


def _srgb(image: Image.Image, profile: object) -> Image.Image:
    """Convert with the image's colour profile; a profile that is broken or for other channels is ignored."""
    if _HAS_COLOR_PROFILES and isinstance(profile, bytes) and profile:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            return converted or image.convert("RGB")
        except PILLOW_ERRORS:
            pass
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it

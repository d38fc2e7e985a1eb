"""Makes images smaller, or JPEGs of what the service doesn't take: to be sent, for a thumbnail, for a look at it."""

from io import BytesIO
from typing import TYPE_CHECKING, Final

from serve_app.images.kinds import kind_of

if TYPE_CHECKING:
    from PIL import Image

_EDGES_PX: Final = (3072, 1536)  # of tries one after the other: models look at less than either
_QUALITY: Final = 92
_MAX_PIXELS: Final = 1_000_000_000  # the user's own files, so a bound for memory only


def smaller(data: bytes, num_before: int) -> bytes | None:
    """The image as a JPEG with its first frame; None where it is broken or was made smaller twice.

    It is what the service's own gate would make of it: upright, opaque, sRGB. `num_before` is how often it was made
    smaller already.
    """
    if num_before >= len(_EDGES_PX):
        return None
    return jpeg(data, _EDGES_PX[num_before], _QUALITY)


def as_jpeg(data: bytes) -> tuple[bytes | None, str]:
    """A HEIC or JPEG XL as a JPEG, for a service that doesn't take it; else None, and the reason."""
    from serve_app.images.formats import extra_formats

    kind = kind_of(data)
    name = kind.name if kind else "an unknown format"
    if kind is None or kind.extra_format not in extra_formats():
        extra = "install 'serve-app[images]' there or here"
        return None, f"the service takes no {name}, and this machine can't make a JPEG of it: {extra}"
    made = jpeg(data, _EDGES_PX[0], _QUALITY)
    return made, "" if made else f"the {name} is broken or cut short, so no JPEG could be made for the service"


def jpeg(data: bytes, edge_px: int, quality: int) -> bytes | None:
    """The image with no edge above `edge_px`; None where it can't be read."""
    made = BytesIO()
    image = decoded(data, edge_px)
    if image is None:
        return None
    image.save(made, "JPEG", quality=quality)
    return made.getvalue()


def decoded(data: bytes, edge_px: int) -> "Image.Image | None":
    """The image in RGB with no edge above `edge_px`; None where it can't be read."""
    from PIL import Image

    from serve_app.config.http import ImageConfig
    from serve_app.images.formats import register_extra_formats
    from serve_app.images.pixels import PILLOW_ERRORS, plain

    register_extra_formats()
    Image.MAX_IMAGE_PIXELS = _MAX_PIXELS
    try:
        with Image.open(BytesIO(data)) as image:
            rgb = plain(image, ImageConfig(max_edge_px=edge_px), None)
        return Image.frombytes("RGB", (rgb.width, rgb.height), rgb.rgb)
    except PILLOW_ERRORS:  # the service's own sentence says what is wrong with it
        return None

"""Makes an image smaller that the service found too large."""

from io import BytesIO
from typing import Final

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


def jpeg(data: bytes, edge_px: int, quality: int) -> bytes | None:
    """The image with no edge above `edge_px`; None where it can't be read."""
    from PIL import Image

    from serve_app.config.http import ImageConfig
    from serve_app.gallery.thumbnail import jpeg_file
    from serve_app.images.pixels import PILLOW_ERRORS, plain

    Image.MAX_IMAGE_PIXELS = _MAX_PIXELS
    try:
        with Image.open(BytesIO(data)) as image:
            return jpeg_file(plain(image, ImageConfig(max_edge_px=edge_px), None), quality)
    except PILLOW_ERRORS:  # the service's own sentence says what is wrong with it
        return None

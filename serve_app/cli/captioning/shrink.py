"""Makes an image smaller that the service found too large: pixels first, then the quality of the file."""

from io import BytesIO
from typing import Final

_EDGES_PX: Final = (3072, 1536)  # of tries one after the other: models look at less than either
_QUALITY: Final = 92
_MAX_PIXELS: Final = 1_000_000_000  # the user's own files, so a bound for memory only


def smaller(data: bytes, num_before: int) -> bytes | None:
    """The image as a JPEG (a PNG where it is transparent); None where it can't be made smaller still.

    `num_before` is how often it was made smaller already.
    """
    from PIL import Image, ImageFile, ImageOps

    from serve_app.images.pixels import PILLOW_ERRORS

    if num_before >= len(_EDGES_PX):
        return None
    edge = _EDGES_PX[num_before]
    Image.MAX_IMAGE_PIXELS = _MAX_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(BytesIO(data)) as image:
            image.draft(None, (edge, edge))
            image.thumbnail((edge, edge), Image.Resampling.LANCZOS, reducing_gap=2.0)
            upright = ImageOps.exif_transpose(image)
            profile = image.info.get("icc_profile")
        is_transparent = upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info
        kept = upright.convert("RGBA" if is_transparent else "RGB") if upright.mode not in ("L", "CMYK") else upright
        made = BytesIO()
        if is_transparent:
            kept.save(made, "PNG", icc_profile=profile)
        else:
            kept.save(made, "JPEG", quality=_QUALITY, icc_profile=profile)
    except PILLOW_ERRORS:  # the service's own sentence says what is wrong with it
        return None
    return made.getvalue()

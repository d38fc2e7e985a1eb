"""The formats that the gate takes: Pillow's own, and HEIC and JPEG XL where the extra `images` is installed.

The libraries of the extra are looked for and not imported: only `decoder_process.py` and the command line load them.
"""

from functools import cache
from importlib.util import find_spec
from typing import Final

from PIL import features

FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF") + (("AVIF",) if features.check("avif") else ())
_LIBRARIES: Final = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}  # by Pillow's name of the format
_NAMES: Final = {"HEIF": "HEIC", "JXL": "JPEG XL"}


@cache
def extra_formats() -> tuple[str, ...]:
    """`HEIF` and `JXL`, as far as their libraries are installed here."""
    return tuple(image_format for image_format, library in _LIBRARIES.items() if find_spec(library))


def taken() -> list[str]:
    """The names of the formats that are taken here."""
    return [*FORMATS, *(_NAMES[image_format] for image_format in extra_formats())]


def accepted() -> str:
    """Which formats are taken here, as the end of a sentence."""
    names = taken()
    return f"{', '.join(names[:-1])} and {names[-1]} are taken"


def register_extra_formats() -> None:
    """Let this process's Pillow open what the extra brings: on one thread, and never a thumbnail for the image."""
    formats = extra_formats()
    if "HEIF" in formats:
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)
    if "JXL" in formats:
        from pillow_jxl import JpegXLImagePlugin  # which registers itself

        JpegXLImagePlugin.DECODE_THREADS = 1

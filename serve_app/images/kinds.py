"""What a file is, by how it begins and, for cameras' own formats, by its extension. No decoder is asked."""

import re
from dataclasses import dataclass
from typing import Final

NUM_BYTES: Final = 1024  # of a file's beginning: enough to tell

_HEIF_BRANDS: Final = rb"hei|hev|mif1|msf1"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file. `media_type` is None where no gate takes any of this kind.

    `extra_format` is Pillow's name of a format that the gate takes where the extra `images` is installed.
    """

    name: str
    media_type: str | None = None
    is_image: bool = True
    extra_format: str | None = None


_JPEG = Kind("JPEG", "image/jpeg")
_TIFF = Kind("TIFF", "image/tiff")
_RAW: Final = Kind("camera RAW")
_RAW_EXTENSIONS: Final = frozenset(
    (
        ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mrw", ".nef", ".nrw", ".orf",
        ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srf", ".srw", ".x3f",
    )
)  # fmt: skip

_KINDS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE | re.DOTALL), kind)
    for pattern, kind in (
        (rb"\xff\xd8\xff", _JPEG),
        (rb"\x89PNG", Kind("PNG", "image/png")),
        (rb"RIFF....WEBP", Kind("WEBP", "image/webp")),
        (rb"GIF8", Kind("GIF", "image/gif")),
        (rb"BM", Kind("BMP", "image/bmp")),
        (rb"II\*\0....CR|FUJIFILMCCD-RAW|IIRO|IIU\0", _RAW),
        (rb"II[*+]\0|MM\0[*+]", _TIFF),
        (rb"....ftyp(avif|avis|(mif1|msf1)....(....){,16}?avi[fs])", Kind("AVIF", "image/avif")),
        (rb"....ftyp(" + _HEIF_BRANDS + rb")", Kind("HEIC", "image/heic", extra_format="HEIF")),
        (rb"....ftypcrx", _RAW),
        (rb"....ftyp", Kind("a video", is_image=False)),
        (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", Kind("JPEG 2000")),
        (rb"\xff\x0a|\0\0\0\x0cJXL ", Kind("JPEG XL", "image/jxl", extra_format="JXL")),
        (rb"8BPS", Kind("a Photoshop file")),
        (rb"%PDF", Kind("a PDF", is_image=False)),
        (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", Kind("an archive", is_image=False)),
        (
            rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.{0,400}?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg",
            Kind("SVG"),
        ),
        (rb"(\xef\xbb\xbf)?\s*<(!doctype )?html", Kind("an HTML page", is_image=False)),
        (rb"(\xef\xbb\xbf)?\s*<\?xml", Kind("XML", is_image=False)),
        (rb"[\s\x20-\x7e\x80-\xff]*$", Kind("text", is_image=False)),
    )
)


def kind_of(start: bytes, extension: str = "") -> Kind | None:
    """The kind of the file that begins with `start`, its first `NUM_BYTES`. None where nothing is known.

    `extension`, such as `.nef`, tells a camera's own format from the TIFF that it also is: its first image is a
    thumbnail.
    """
    if extension.lower() in _RAW_EXTENSIONS:
        return _RAW
    head = start[:NUM_BYTES]
    return next((kind for pattern, kind in _KINDS if pattern.match(head)), None)

"""Counts what makes a file of few pixels expensive: the scans of a JPEG, the chunks of a PNG, the tiles of a TIFF.

Pillow knows an image's size before it decodes it, but sets no limit on these.
"""

import re
import struct
from collections.abc import Iterator
from typing import Final

from PIL import Image

MAX_JPEG_SCANS: Final = 100  # libtiff's limit for the JPEGs inside TIFF; encoders write up to some 14

# A marker that begins a segment; not a stuffed byte, a restart marker or a fill byte, which stand within scans.
_JPEG_SEGMENT: Final = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_JPEG_SCAN: Final = b"\xff\xda"
_JPEG_END: Final = b"\xff\xd9"
_MAX_JPEG_SEGMENTS: Final = 3000  # 20 MB of metadata, in segments of 64 KB, are some 300; a scan may bring its tables

MAX_PNG_CHUNKS: Final = 20_000  # encoders write some 8 KB of pixels in each: 20 MB are some 2500
_PNG_FIRST_CHUNK: Final = 8  # bytes of signature before it
_PNG_CHUNK_FRAME: Final = 12  # bytes of length, kind and checksum

_TILE_EDGES: Final = (322, 323)  # TileWidth, TileLength


def num_jpeg_scans(data: bytes) -> int:
    """The scans before a JPEG's end marker (ITU-T T.81, B.1). Counting stops when they are too many.

    Each scan passes over all pixels, however small it is: a few hundred KB keep a thread busy for seconds, 20 MB for
    a quarter of an hour.
    """
    num_scans, at = 0, 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        marker = _JPEG_SEGMENT.search(data, at)
        if marker is None or marker[0] == _JPEG_END or num_scans > MAX_JPEG_SCANS:
            return num_scans
        num_scans += marker[0] == _JPEG_SCAN
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return MAX_JPEG_SCANS + 1


def num_png_chunks(data: bytes) -> int:
    """The chunks before a PNG's end; Pillow reads each in Python. Counting stops when they are too many."""
    at = _PNG_FIRST_CHUNK
    for num_chunks in range(MAX_PNG_CHUNKS + 1):
        if at >= len(data) or data[at + 4 : at + 8] == b"IEND":
            return num_chunks
        at += _PNG_CHUNK_FRAME + int.from_bytes(data[at : at + 4], "big")
    return MAX_PNG_CHUNKS + 1


def num_tile_pixels(image: Image.Image, data: bytes) -> int:
    """The pixels of one tile of a TIFF, 0 without tiles. The decoder allocates a whole tile for an image of any size.

    Raises `ValueError` where Pillow and libtiff could read different numbers, as from a tag that comes twice.
    """
    tags = list(_tiff_tags(data))
    if not any(tag in tags for tag in _TILE_EDGES):
        return 0
    values = getattr(image, "tag_v2", {})
    width, length = (values.get(tag) for tag in _TILE_EDGES)
    is_clear = all(tags.count(tag) == 1 for tag in _TILE_EDGES)
    if not (is_clear and isinstance(width, int) and isinstance(length, int)):
        raise ValueError("tiles without one width and one length")
    return abs(width * length)


def _tiff_tags(data: bytes) -> Iterator[int]:
    """The tags of the first directory, in classic TIFF and BigTIFF. Raises `struct.error` if it is cut short."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = struct.unpack_from(f"{order}H", data, 2)[0] == 43
    (start,) = struct.unpack_from(f"{order}Q" if is_big else f"{order}I", data, 8 if is_big else 4)
    (num_tags,) = struct.unpack_from(f"{order}Q" if is_big else f"{order}H", data, start)
    first, size = (start + 8, 20) if is_big else (start + 2, 12)
    for index in range(num_tags):
        yield struct.unpack_from(f"{order}H", data, first + size * index)[0]

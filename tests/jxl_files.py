"""JPEG XL files made by hand (ISO/IEC 18181-1): headers bit by bit, and frames of nothing but zeros."""

import io
import math
import struct
from typing import Any

import pillow_jxl  # noqa: F401 -- registers itself with Pillow
from PIL import Image

from tests.heif_files import box

CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n" + box(b"ftyp", b"jxl \0\0\0\0jxl ")
ALPHA, BLACK = 0, 4


def jxl(image: Image.Image, **options: Any) -> bytes:
    """As pillow_jxl writes it."""
    buffer = io.BytesIO()
    image.save(buffer, "JXL", **options)
    return buffer.getvalue()


class Bits:
    """Numbers from the lowest bit of the first byte on."""

    def __init__(self) -> None:
        self._text = ""

    def add(self, *values: tuple[int, int]) -> "Bits":
        """Each a value and its number of bits."""
        for value, num_bits in values:
            self._text += f"{value:0{num_bits}b}"[::-1] if num_bits else ""
        return self

    @property
    def data(self) -> bytes:
        padded = self._text + "0" * (-len(self._text) % 8)
        return bytes(int(padded[at : at + 8][::-1], 2) for at in range(0, len(padded), 8))


def header(width: int, height: int, channels: tuple[int, ...] = (), is_animated: bool = False,
           has_preview: bool = False, num_bits: int = 8, is_gray: bool = False) -> Bits:  # fmt: skip
    """A codestream's first fields, with extra channels of these types."""
    bits = Bits().add((0x0AFF, 16), (0, 1), (3, 2), (height - 1, 30), (0, 3), (3, 2), (width - 1, 30), (0, 1))
    if is_animated or has_preview:
        bits.add((1, 1), (0, 3), (0, 1), (has_preview, 1))
        if has_preview:
            bits.add((0, 1), (0, 2), (31, 6), (1, 3))
        bits.add((is_animated, 1))
        if is_animated:
            bits.add((0, 2), (0, 2), (0, 2), (0, 1))
    else:
        bits.add((0, 1))
    bits.add((0, 1), (3, 2), (num_bits - 1, 6), (1, 1))
    bits.add(*([(3, 2), (len(channels) - 1, 12)] if channels else [(0, 2)]))
    for channel in channels:
        bits.add((0, 1), (2, 2), (channel - 2 if channel > 1 else 0, 4)) if channel > 1 else bits.add(
            (0, 1), (channel, 2)
        )
        bits.add((0, 1), (0, 2), (0, 2), (1, 2), (4, 4), (0x6B6E6967, 32))
        if channel == ALPHA:
            bits.add((0, 1))
    return bits.add((0, 1), *([(0, 1), (0, 1), (1, 2)] if is_gray else [(1, 1)]))


def black_frames(num_frames: int, edge: int) -> bytes:
    """An image of 8 x 8 with frames of so many pixels: all zeros, so each takes a byte or two a million pixels."""
    first = Bits().add((0x0AFF, 16), (1, 1), (0, 5), (1, 3), (1, 1), (1, 1)).data
    return first + b"".join(_frame(edge, is_last=at == num_frames - 1) for at in range(num_frames))


def _frame(edge: int, is_last: bool) -> bytes:
    frame = Bits().add((0, 1), (0, 2), (1, 1), (0, 2), (0, 2), (3, 2), (0, 2), (1, 1))
    side = ((3, 2), (edge - 18688, 30)) if edge >= 18688 else ((2, 2), (edge - 2304, 14))
    frame.add(
        (0, 2), (0, 8), (0, 2), (0, 8), *side, *side, (0, 2), (is_last, 1), *([] if is_last else [(0, 2), (0, 1)])
    )
    frame.add((0, 2), (1, 1), (0, 2), (0, 1))
    group = Bits().add(
        (0, 1), (1, 1), (0, 2), (0, 1), (1, 1), (0, 2), (1, 1), (0, 4), (0, 1), (0, 1), (1, 1), (0, 4), (0, 1)
    ).data  # fmt: skip
    sections = [b"\x09", *[b""] * math.ceil(edge / 8192) ** 2, b"", *[group] * math.ceil(edge / 1024) ** 2]
    sizes = Bits()
    for section in sections:
        sizes.add((0, 2), (len(section), 10))
    return frame.data + sizes.data + b"".join(sections)


def boxed(codestream: bytes, how: str) -> bytes:
    """In a container: `whole`, in `parts`, its box `to the end` of the file, or with a size of 64 bits."""
    match how:
        case "whole":
            return CONTAINER + box(b"jxlc", codestream)
        case "parts":
            first = box(b"jxlp", struct.pack(">I", 0) + codestream[:3])
            return CONTAINER + first + box(b"jxlp", struct.pack(">I", 0x80000001) + codestream[3:])
        case "to the end":
            return CONTAINER + b"\0\0\0\0jxlc" + codestream
        case _:
            return CONTAINER + b"\0\0\0\1jxlc" + struct.pack(">Q", 16 + len(codestream)) + codestream


def turned(codestream: bytes, orientation: int) -> bytes:
    """A codestream of 64 x 32 with nothing but defaults in its header, that says how it is to be turned."""
    size = ((0x0AFF, 16), (1, 1), (3, 5), (7, 3))
    assert codestream.startswith(Bits().add(*size, (1, 1), (1, 1)).data)
    fields = ((0, 1), (1, 1), (orientation - 1, 3), (0, 3), (0, 3), (1, 1), (0, 2), (1, 1), (1, 1), (1, 1), (0, 2))
    return Bits().add(*size, *fields, (1, 1)).data + codestream[4:]

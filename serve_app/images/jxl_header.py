"""Reads the header of a JPEG XL file (ISO/IEC 18181-1 and -2), which the decoder shows only with the decoded image.

Nothing is decoded: the codestream is found in its boxes, and the first fields of its header are read bit by bit.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

CODESTREAM_START: Final = b"\xff\x0a"
_CONTAINER_START: Final = b"\0\0\0\x0cJXL \r\n\x87\n"
_MAX_BOXES: Final = 1000  # before the codestream
_HEADER_BYTES: Final = 65_536  # of the codestream; names of extra channels are the only long part

_RATIOS: Final = ((0, 0), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # of the width to the height
_EDGE: Final = ((9, 1), (13, 1), (18, 1), (30, 1))
_PREVIEW_EIGHTHS: Final = ((0, 16), (0, 32), (5, 1), (9, 33))
_PREVIEW_EDGE: Final = ((6, 1), (8, 65), (10, 321), (12, 1345))
_TICKS: Final = ((0, 100), (0, 1000), (10, 1), (30, 1))
_TICKS_DIVISOR: Final = ((0, 1), (0, 1001), (8, 1), (10, 1))
_LOOPS: Final = ((0, 0), (3, 0), (16, 0), (32, 0))
_BITS: Final = ((0, 8), (0, 10), (0, 12), (6, 1))
_FLOAT_BITS: Final = ((0, 32), (0, 16), (0, 24), (6, 1))
_NUM_CHANNELS: Final = ((0, 0), (0, 1), (4, 2), (12, 1))
_ENUM: Final = ((0, 0), (0, 1), (4, 2), (6, 18))
_DIM_SHIFT: Final = ((0, 0), (0, 3), (0, 4), (3, 1))
_NAME_BYTES: Final = ((0, 0), (4, 0), (5, 16), (10, 48))
_CFA: Final = ((0, 1), (2, 0), (4, 3), (8, 19))
_GRAY: Final = 1
_ALPHA, _SPOT_COLOR, _BLACK, _CFA_CHANNEL = 0, 2, 4, 5  # types of extra channels


@dataclass(frozen=True, slots=True)
class JxlHeader:
    """What a JPEG XL costs. The size is that of the stored image, which may lie on its side.

    Extra channels are those beside gray or RGB, as transparency is; `is_cmyk` where one of them is black ink.
    `is_deep_gray` is gray of more than 8 bits.
    """

    width: int
    height: int
    is_animated: bool = False
    num_extra_channels: int = 0
    is_cmyk: bool = False
    is_deep_gray: bool = False


def jxl_header(data: bytes) -> JxlHeader:
    """Raises `ValueError` where the header is broken or cut short."""
    bits = _Bits(_codestream(data))
    if bits.read(16) != int.from_bytes(CODESTREAM_START, "little"):
        raise ValueError("no codestream")
    width, height = _size(bits)
    if bits.flag():  # everything else is as usual: 8 bits, no extra channels
        return JxlHeader(width, height)
    is_animated = _read_extra_fields(bits) if bits.flag() else False
    num_bits = _bit_depth(bits)
    bits.flag()  # whether 16 bits are enough while decoding
    num_channels = bits.number(_NUM_CHANNELS)
    kinds = [_channel_type(bits) for _ in range(num_channels)]
    is_deep_gray = _is_gray(bits) and num_bits > 8
    return JxlHeader(width, height, is_animated, num_channels, _BLACK in kinds, is_deep_gray)


class _Bits:
    """Numbers from the lowest bit of the first byte on, as 18181-1 B.2 defines them."""

    def __init__(self, data: bytes) -> None:
        self._bits = int.from_bytes(data[:_HEADER_BYTES], "little")
        self._num_bits = 8 * min(len(data), _HEADER_BYTES)
        self._at = 0

    def read(self, num_bits: int) -> int:
        if self._at + num_bits > self._num_bits:
            raise ValueError("the header is cut short")
        value = (self._bits >> self._at) & ((1 << num_bits) - 1)
        self._at += num_bits
        return value

    def flag(self) -> bool:
        return self.read(1) == 1

    def number(self, choices: tuple[tuple[int, int], ...]) -> int:
        """A `U32`: two bits choose how many bits follow and what is added to them."""
        num_bits, offset = choices[self.read(2)]
        return self.read(num_bits) + offset


def _size(bits: _Bits) -> tuple[int, int]:
    is_small = bits.flag()

    def edge() -> int:
        return 8 * (bits.read(5) + 1) if is_small else bits.number(_EDGE)

    height = edge()
    numerator, denominator = _RATIOS[bits.read(3)]
    return (height * numerator // denominator if numerator else edge()), height


def _read_extra_fields(bits: _Bits) -> bool:
    """Orientation, intended size, preview and animation; returns whether it is an animation."""
    bits.read(3)
    if bits.flag():
        _size(bits)
    if bits.flag():
        choices = _PREVIEW_EIGHTHS if bits.flag() else _PREVIEW_EDGE
        bits.number(choices)
        if bits.read(3) == 0:
            bits.number(choices)
    is_animated = bits.flag()
    if is_animated:
        for choices in (_TICKS, _TICKS_DIVISOR, _LOOPS):
            bits.number(choices)
        bits.flag()
    return is_animated


def _bit_depth(bits: _Bits) -> int:
    is_float = bits.flag()
    num_bits = bits.number(_FLOAT_BITS if is_float else _BITS)
    if is_float:
        bits.read(4)  # of them in the exponent
    return num_bits


def _is_gray(bits: _Bits) -> bool:
    bits.flag()  # XYB
    if bits.flag():  # sRGB
        return False
    bits.flag()  # whether a profile follows
    return bits.number(_ENUM) == _GRAY


def _channel_type(bits: _Bits) -> int:
    if bits.flag():
        return _ALPHA
    channel_type = bits.number(_ENUM)
    _bit_depth(bits)
    bits.number(_DIM_SHIFT)
    bits.read(8 * bits.number(_NAME_BYTES))
    if channel_type == _ALPHA:
        bits.flag()
    elif channel_type == _SPOT_COLOR:
        bits.read(4 * 16)
    elif channel_type == _CFA_CHANNEL:
        bits.number(_CFA)
    return channel_type


def _codestream(data: bytes) -> bytes:
    """The beginning of the codestream: the file itself, or what its boxes hold of it (18181-2)."""
    if data.startswith(CODESTREAM_START):
        return data[:_HEADER_BYTES]
    if not data.startswith(_CONTAINER_START):
        raise ValueError("no JPEG XL")
    codestream = b""
    for kind, content in _boxes(data):
        if kind == b"jxlc":
            return content
        if kind == b"jxlp":  # a part, behind its number
            codestream += content[4:]
            if len(codestream) >= _HEADER_BYTES:
                break
    return codestream


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each box's kind and the beginning of its content. A size of 1 stands for one of 64 bits, 0 for all the rest."""
    at = 0
    for _ in range(_MAX_BOXES):
        if at + 8 > len(data):
            return
        size, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1:
            if start + 8 > len(data):
                return
            (size,) = struct.unpack_from(">Q", data, start)
            start += 8
        end = at + size if size else len(data)
        if end < start:
            raise ValueError("a box is smaller than its own frame")
        yield kind, data[start : min(end, start + 4 + _HEADER_BYTES)]
        at = end

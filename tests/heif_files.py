"""HEIC files made by hand (ISO/IEC 23008-12): items that lie about their size, repeated tiles and overlays."""

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pillow_heif
from PIL import Image


def heic(image: Image.Image, **options: object) -> bytes:
    """As pillow_heif writes it."""
    pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    image.save(buffer, "HEIF", **options)
    return buffer.getvalue()


def box(kind: bytes, content: bytes, version: int | None = None, flags: int = 0) -> bytes:
    frame = b"" if version is None else bytes([version]) + flags.to_bytes(3, "big")
    return struct.pack(">I4s", 8 + len(frame) + len(content), kind) + frame + content


@dataclass(frozen=True)
class Item:
    """One of a file's items. `edges` is what its `ispe` says, `refers_to` are the items that it is made of."""

    kind: bytes
    data: bytes
    edges: tuple[int, int]
    refers_to: Sequence[int] = ()
    hvcc: bytes = b""


def coded(edge: int, says: tuple[int, int] | None = None) -> Item:
    """A gray square, a few bytes long whatever its edge, that says that it has other edges."""
    data = heic(Image.new("RGB", (edge, edge), (128, 128, 128)), enc_params={"preset": "ultrafast"})
    (meta,) = (content for kind, content in boxes(data) if kind == b"meta")
    (iprp,) = (content for kind, content in boxes(meta[4:]) if kind == b"iprp")
    (ipco,) = (content for kind, content in boxes(iprp) if kind == b"ipco")
    (hvcc,) = (content for kind, content in boxes(ipco) if kind == b"hvcC")
    (mdat,) = (content for kind, content in boxes(data) if kind == b"mdat")
    return Item(b"hvc1", mdat, says or (edge, edge), hvcc=box(b"hvcC", hvcc))


def grid(num_rows: int, num_columns: int, canvas: tuple[int, int], tile: int, says: tuple[int, int]) -> Item:
    """A grid of one tile again and again."""
    data = struct.pack(">BBBBII", 0, 1, num_rows - 1, num_columns - 1, *canvas)
    return Item(b"grid", data, says, [tile] * (num_rows * num_columns))


def overlay(canvas: tuple[int, int], items: Sequence[int], says: tuple[int, int]) -> Item:
    data = struct.pack(">BB4HII", 0, 1, *[0xFFFF] * 4, *canvas) + bytes(8) * len(items)
    return Item(b"iovl", data, says, items)


def heif(*items: Item, primary: int = 1) -> bytes:
    """The file of these items, numbered from 1."""
    numbers = range(1, len(items) + 1)
    infos = [
        box(b"infe", struct.pack(">HH4s", n, 0, item.kind) + b"\0", 2) for n, item in zip(numbers, items, strict=True)
    ]
    references = [
        box(b"dimg", struct.pack(f">HH{len(item.refers_to)}H", n, len(item.refers_to), *item.refers_to))
        for n, item in zip(numbers, items, strict=True)
        if item.refers_to
    ]
    properties, uses, places = list[bytes](), list[bytes](), list[bytes]()
    offset = 0
    for n, item in zip(numbers, items, strict=True):
        own = [box(b"ispe", struct.pack(">II", *item.edges), 0), *([item.hvcc] if item.hvcc else [])]
        first = len(properties) + 1
        uses.append(struct.pack(f">HB{len(own)}H", n, len(own), *[0x8000 | first + at for at in range(len(own))]))
        properties += own
        places.append(struct.pack(">HHHHII", n, 1, 0, 1, offset, len(item.data)))
        offset += len(item.data)
    meta = b"".join(
        [
            box(b"hdlr", bytes(4) + b"pict" + bytes(13), 0),
            box(b"pitm", struct.pack(">H", primary), 0),
            box(b"iinf", struct.pack(">H", len(items)) + b"".join(infos), 0),
            box(b"iref", b"".join(references), 0) if references else b"",
            box(b"iprp", box(b"ipco", b"".join(properties))
                + box(b"ipma", struct.pack(">I", len(items)) + b"".join(uses), 0, flags=1)),
            box(b"iloc", b"\x44\0" + struct.pack(">H", len(items)) + b"".join(places), 1),
            box(b"idat", b"".join(item.data for item in items)),
        ]
    )  # fmt: skip
    return box(b"ftyp", b"heic\0\0\0\0mif1heic") + box(b"meta", meta, 0)


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at + 8 : at + size]
        at += size

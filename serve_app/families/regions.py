"""Reads where things are in an image from an answer's text: Florence-2's `<loc_…>`, Kosmos-2's `<patch_index_…>`.

Pure, and linear in the text, whatever a model wrote. Places are shares of the image's width and height from its top
left corner, 0 to 1, so that they hold for an image of any size. The formats are those of the models' cards and of
transformers' processors (`Florence2PostProcessor`, `clean_text_and_extract_entities_with_bboxes`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve_app.families.family import Reading

_FLORENCE_BINS = 1000
_KOSMOS_SIDE = 32  # its 1,024 patches are 32 rows of 32
_PIECE = re.compile(r"<(/?[a-z_]{1,40}?/?)(?:_(\d{1,4}))?>|([^<]+|<)")


@dataclass(frozen=True, slots=True)
class Region:
    """Something in the image: a box (left, top, right, bottom), four corners, or outlines, each x and y in turn.

    `label` is the model's word for it, `span` where that stands in the caption.
    """

    label: str | None
    box: tuple[float, ...] | None = None
    quad: tuple[float, ...] | None = None
    polygons: tuple[tuple[float, ...], ...] | None = None
    span: tuple[int, int] | None = None

    def as_json(self) -> dict[str, Any]:
        shown = {"box": self.box, "quad": self.quad, "polygons": self.polygons, "span": self.span}
        return {"label": self.label} | {name: value for name, value in shown.items() if value is not None}


def read_regions(text: str, reading: Reading) -> tuple[str, tuple[Region, ...]]:
    """The answer without its tokens, and its regions in order."""
    if reading == "entities":
        return _entities(text)
    if reading == "text":
        return text, ()
    if reading == "boxes or polygons":
        reading = "polygons" if "<poly>" in text else "boxes"
    regions = tuple(region for run in _runs(text) for region in _regions(run, reading))
    labels = dict.fromkeys(region.label for region in regions if region.label)
    return ", ".join(labels) if regions else "".join(_texts(text)).strip(), regions


@dataclass(slots=True)
class _Run:
    """A label and the places that follow it: numbers, and the marks between them."""

    label: str = ""
    places: list[int | str] = field(default_factory=list)

    @property
    def numbers(self) -> list[int]:
        return [place for place in self.places if isinstance(place, int)]


def _runs(text: str) -> Iterator[_Run]:
    run = _Run()
    for tag, number, plain in _PIECE.findall(text):
        if plain:
            if run.places and plain.strip():
                yield run
                run = _Run()
            run.label += plain
        elif tag == "loc" and number:
            run.places.append(min(int(number), _FLORENCE_BINS - 1))
        elif tag in ("sep", "poly", "/poly"):
            run.places.append(tag)
    yield run


def _texts(text: str) -> Iterator[str]:
    return (plain for _, _, plain in _PIECE.findall(text) if plain)


def _regions(run: _Run, reading: Reading) -> Iterator[Region]:
    label = run.label.strip() or None
    if reading == "polygons":
        for outlines in _outlines(run.places):
            yield Region(label, polygons=tuple(_shares(outline) for outline in outlines))
    elif reading == "quads":
        for quad in _groups(run.numbers, 8):
            yield Region(label, quad=_shares(quad))
    elif label or reading == "bare boxes":
        for box in _groups(run.numbers, 4):
            yield Region(label, box=_shares(box))


def _groups(numbers: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Complete ones only: the last may be cut off."""
    return (numbers[at : at + size] for at in range(0, len(numbers) - size + 1, size))


def _shares(numbers: Sequence[int]) -> tuple[float, ...]:
    """The middle of each thousandth."""
    return tuple((number + 0.5) / _FLORENCE_BINS for number in numbers)


def _outlines(places: Sequence[int | str]) -> Iterator[list[list[int]]]:
    """Each thing's outlines: `<sep>` stands between outlines of one thing, `<poly>` … `</poly>` around a thing."""
    outlines: list[list[int]] = [[]]
    for place in (*places, "/poly"):
        if isinstance(place, int):
            outlines[-1].append(place)
        elif place == "sep":
            outlines.append([])
        else:
            whole = [outline[: len(outline) // 2 * 2] for outline in outlines if len(outline) > 1]
            if whole:
                yield whole
            outlines = [[]]


def _entities(text: str) -> tuple[str, tuple[Region, ...]]:
    """Kosmos-2's: `<phrase> a snowman</phrase><object><patch_index_0044><patch_index_0863></object>`."""
    said: list[str] = []
    length = 0
    phrase: tuple[int, int] | None = None
    begun_at: int | None = None
    patches: list[int] | None = None
    places: list[tuple[tuple[int, int] | None, list[int]]] = []
    for tag, number, plain in _PIECE.findall(text):
        if plain:
            if patches is None:
                phrase = phrase if not plain.strip() or begun_at is not None else None
                said.append(plain)
                length += len(plain)
        elif tag == "phrase":
            begun_at, phrase = length, None
        elif tag == "/phrase" and begun_at is not None:
            phrase, begun_at = (begun_at, length), None
        elif tag == "object":
            patches = []
        elif tag == "patch_index" and number and patches is not None:
            patches.append(int(number))
        elif tag == "/object" and patches is not None:
            places.append((phrase, patches))
            phrase = patches = None
    whole = "".join(said)
    caption = whole.strip()
    offset = len(whole) - len(whole.lstrip())
    return caption, tuple(
        _entity(whole, span, offset, _patch_box(first, last))
        for span, patches in places
        for first, last in _groups(patches, 2)
        if max(first, last) < _KOSMOS_SIDE**2
    )


def _entity(whole: str, span: tuple[int, int] | None, offset: int, box: tuple[float, ...]) -> Region:
    if span is None:
        return Region(None, box)
    phrase = whole[slice(*span)]
    start = span[0] + len(phrase) - len(phrase.lstrip()) - offset
    label = phrase.strip()
    return Region(label, box, span=(start, start + len(label)))


def _patch_box(first: int, last: int) -> tuple[float, ...]:
    """From the middle of the first patch to that of the last; whole patches where they share a row or column."""
    (top, left), (bottom, right) = divmod(first, _KOSMOS_SIDE), divmod(last, _KOSMOS_SIDE)
    is_thin = left == right or top == bottom
    begin, end = (0.0, 1.0) if is_thin else (0.5, 0.5)
    return tuple(place / _KOSMOS_SIDE for place in (left + begin, top + begin, right + end, bottom + end))

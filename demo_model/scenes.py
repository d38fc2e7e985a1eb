"""What a scene is: one to three shapes on a 3 × 3 grid of places, before anything is drawn.

Also owns the held-out rule: a scene whose *set* of (shape, color) pairs hashes to 0 modulo 8 is never trained
on, whatever its places, sizes and background; evaluation uses only such scenes. Knows no pixels and no words.
"""

import hashlib
import random
from dataclasses import dataclass

KINDS = ("circle", "square", "triangle", "star", "cross", "diamond", "heart", "ring")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "black", "white")
SIZES = ("small", "large")
PLACES = (
    "top left", "top center", "top right",
    "middle left", "center", "middle right",
    "bottom left", "bottom center", "bottom right",
)  # fmt: skip
# A background, and the shape colors that would be hard to tell from it.
BACKGROUNDS: dict[str, frozenset[str]] = {
    "white": frozenset({"white"}),
    "black": frozenset({"black"}),
    "gray": frozenset(),
    "light blue": frozenset({"white", "cyan"}),
    "light green": frozenset({"white", "green"}),
    "beige": frozenset({"white"}),
    "dark blue": frozenset({"blue", "purple", "black"}),
    "dark green": frozenset({"green", "black"}),
}
_BACKGROUND_WEIGHTS = (30, 14, 14, 9, 9, 8, 8, 8)
_HELD_OUT_MODULUS = 8


@dataclass(frozen=True, slots=True)
class Shape:
    kind: str
    color: str
    size: str
    place: int  # 0–8, row-major; an index into PLACES

    @property
    def row(self) -> int:
        return self.place // 3

    @property
    def column(self) -> int:
        return self.place % 3


@dataclass(frozen=True, slots=True)
class Scene:
    shapes: tuple[Shape, ...]  # in row-major order of their places
    background: str

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        return frozenset((shape.kind, shape.color) for shape in self.shapes)


def is_held_out(scene: Scene) -> bool:
    """Whether the scene's combination of shapes and colors is kept away from training."""
    text = ";".join(f"{color} {kind}" for kind, color in sorted(scene.pairs))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % _HELD_OUT_MODULUS == 0


def random_scene(rng: random.Random) -> Scene:
    """A scene of one to three shapes; no two share both kind and color, and each has a place of its own."""
    background = rng.choices(tuple(BACKGROUNDS), _BACKGROUND_WEIGHTS)[0]
    colors = [color for color in COLORS if color not in BACKGROUNDS[background]]
    count = rng.choices((1, 2, 3), (25, 40, 35))[0]
    pairs: set[tuple[str, str]] = set()
    while len(pairs) < count:
        pairs.add((rng.choice(KINDS), rng.choice(colors)))
    ordered = rng.sample(sorted(pairs), count)
    places = sorted(rng.sample(range(9), count))
    placed = zip(ordered, places, strict=True)
    return Scene(tuple(Shape(kind, color, rng.choice(SIZES), place) for (kind, color), place in placed), background)


def random_split_scene(rng: random.Random, *, held_out: bool) -> Scene:
    """The next random scene of one side of the held-out rule."""
    while True:
        scene = random_scene(rng)
        if is_held_out(scene) is held_out:
            return scene

"""The geometry of the eight shapes: polygons inside the unit square [-1, 1]², and masks drawn from them.

A mask is an `L` picture of one shape, antialiased or not. Knows no colors, places or scenes.
"""

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Outline:
    """A polygon, or a disc where `points` is empty; `hole` is the inner radius of a ring."""

    points: tuple[tuple[float, float], ...] = ()
    hole: float = 0.0


def _rotated(points: Points, degrees: float) -> Points:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = [(x * cos - y * sin, x * sin + y * cos) for x, y in points]
    reach = max(max(abs(x), abs(y)) for x, y in turned)
    return [(x / reach, y / reach) for x, y in turned]


def _tilt(rng: random.Random, limit: float, share: float = 0.35) -> float:
    return rng.uniform(-limit, limit) if rng.random() < share else 0.0


def _square(rng: random.Random) -> Points:
    return _rotated([(-1, -1), (1, -1), (1, 1), (-1, 1)], _tilt(rng, 9))


def _triangle(rng: random.Random) -> Points:
    apex = 0.0 if rng.random() < 0.75 else rng.uniform(-0.8, 0.8)
    top = rng.choice((-1.0, -0.87, -0.73))
    turn = 180.0 if rng.random() < 0.15 else _tilt(rng, 12)
    return _rotated([(apex, top), (1, 0.87), (-1, 0.87)], turn)


def _star(rng: random.Random) -> Points:
    inner = rng.uniform(0.36, 0.5)
    radii = [1.0, inner] * 5
    points = [
        (radius * math.sin(index * math.pi / 5), -radius * math.cos(index * math.pi / 5))
        for index, radius in enumerate(radii)
    ]
    return _rotated(points, _tilt(rng, 36))


def _cross(rng: random.Random) -> Points:
    arm = rng.uniform(0.2, 0.4)
    corner = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    points = [(x, y) for turn in range(4) for x, y in _quarter_turns(corner, turn)]
    return _rotated(points, 45.0 if rng.random() < 0.15 else _tilt(rng, 10))


def _quarter_turns(points: Points, count: int) -> Points:
    for _ in range(count):
        points = [(-y, x) for x, y in points]
    return points


def _diamond(rng: random.Random) -> Points:
    width = rng.choice((1.0, 1.0, rng.uniform(0.65, 1.0)))
    return _rotated([(0, -1), (width, 0), (0, 1), (-width, 0)], _tilt(rng, 8))


def _heart(rng: random.Random) -> Points:
    angles = [index * math.pi / 24 for index in range(48)]
    points = [
        (
            math.sin(angle) ** 3,
            -(13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)) / 15.5
            - 0.12,
        )
        for angle in angles
    ]
    return _rotated(points, _tilt(rng, 12))


_POLYGONS = {
    "square": _square, "triangle": _triangle, "star": _star,
    "cross": _cross, "diamond": _diamond, "heart": _heart,
}  # fmt: skip


def random_outline(kind: str, rng: random.Random) -> Outline:
    """One of the many ways to draw a shape of this kind."""
    if kind == "circle":
        return Outline()
    if kind == "ring":
        return Outline(hole=rng.uniform(0.5, 0.87))
    return Outline(points=tuple(_POLYGONS[kind](rng)))


def mask(outline: Outline, diameter: float, *, scale: float = 1.0, supersampling: int = 1) -> Image.Image:
    """The shape as an `L` picture of its bounding square; `scale` below 1 shrinks it about its center."""
    side = max(3, round(diameter))
    large = side * supersampling
    picture = Image.new("L", (large, large))
    draw = ImageDraw.Draw(picture)
    middle = (large - 1) / 2
    radius = middle * scale
    if outline.points:
        draw.polygon([(middle + radius * x, middle + radius * y) for x, y in outline.points], fill=255)
    else:
        draw.ellipse((middle - radius, middle - radius, middle + radius, middle + radius), fill=255)
    if outline.hole:
        hole = middle * (outline.hole + 1 - scale)
        draw.ellipse((middle - hole, middle - hole, middle + hole, middle + hole), fill=0)
    return picture if supersampling == 1 else picture.resize((side, side), Image.Resampling.BOX)

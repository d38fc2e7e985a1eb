"""From a scene to a picture: canvas, positions in pixels, colors, background, file format artifacts.

The same scene can be drawn in very many ways; every choice comes from the `random.Random` that is given, so a
seed fixes the picture. Knows nothing about words or models.
"""

import io
import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from demo_model.outlines import mask, random_outline
from demo_model.scenes import Scene, Shape

Color = tuple[int, int, int]

_SHAPE_COLORS: dict[str, tuple[Color, ...]] = {
    "red": ((255, 0, 0), (255, 0, 0), (220, 20, 60), (200, 30, 30), (230, 40, 40), (178, 10, 10)),
    "orange": ((255, 165, 0), (255, 165, 0), (255, 140, 0), (240, 130, 30), (250, 125, 10)),
    "yellow": ((255, 255, 0), (255, 255, 0), (255, 225, 0), (240, 225, 40), (250, 235, 70)),
    "green": ((0, 128, 0), (0, 255, 0), (0, 255, 0), (34, 139, 34), (40, 170, 60), (60, 180, 75), (0, 200, 0)),
    "cyan": ((0, 255, 255), (0, 255, 255), (0, 205, 220), (64, 224, 208), (0, 210, 210)),
    "blue": ((0, 0, 255), (0, 0, 255), (30, 60, 200), (65, 105, 225), (30, 130, 250), (0, 0, 180)),
    "purple": ((128, 0, 128), (128, 0, 128), (148, 0, 211), (110, 40, 160), (138, 43, 226), (155, 60, 190)),
    "pink": ((255, 192, 203), (255, 192, 203), (255, 105, 180), (255, 150, 190), (250, 120, 170)),
    "black": ((0, 0, 0), (0, 0, 0), (20, 20, 20), (32, 32, 32)),
    "white": ((255, 255, 255), (255, 255, 255), (246, 246, 246)),
}  # fmt: skip
_BACKGROUND_COLORS: dict[str, tuple[Color, ...]] = {
    "white": ((255, 255, 255), (255, 255, 255), (255, 255, 255), (248, 248, 248), (245, 245, 245)),
    "black": ((0, 0, 0), (0, 0, 0), (12, 12, 12), (20, 20, 20)),
    "gray": ((128, 128, 128), (128, 128, 128), (150, 150, 150), (190, 190, 190), (110, 110, 110), (169, 169, 169)),
    "light blue": ((173, 216, 230), (170, 205, 240), (150, 195, 235), (180, 215, 245)),
    "light green": ((144, 238, 144), (185, 235, 185), (170, 225, 170), (160, 230, 165)),
    "beige": ((245, 245, 220), (235, 220, 185), (240, 225, 195), (228, 212, 175)),
    "dark blue": ((0, 0, 139), (20, 25, 90), (15, 20, 75), (25, 35, 105)),
    "dark green": ((0, 100, 0), (15, 70, 30), (20, 60, 25), (10, 80, 35)),
}  # fmt: skip
_COMMON_CANVASES = (
    (224, 224), (256, 256), (512, 512), (320, 240), (640, 480), (400, 300), (300, 200), (480, 320), (320, 180),
    (640, 360), (384, 384), (336, 336), (128, 128), (96, 96), (64, 64), (800, 600), (160, 120), (300, 150),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a shape stands on the canvas, in pixels."""

    shape: Shape
    x: float
    y: float
    diameter: float


@dataclass(frozen=True, slots=True)
class Layout:
    width: int
    height: int
    placements: tuple[Placement, ...]


def random_canvas(rng: random.Random) -> tuple[int, int]:
    """Width and height in pixels, at least 64: common formats, mostly up to 2 : 1, rarely 3 : 1."""
    if rng.random() < 0.4:
        width, height = rng.choice(_COMMON_CANVASES)
    else:
        aspect = 2.0 ** rng.uniform(0, 1) if rng.random() < 0.85 else rng.uniform(2, 3)
        long_side = math.exp(rng.uniform(math.log(64), math.log(640)))
        if rng.random() < 0.03:
            long_side = rng.uniform(640, 1500)
        # Below 64 pixels a small shape has fewer than 9, and nobody can tell a heart from a star.
        width, height = round(long_side), max(64, round(long_side / aspect))
    return (width, height) if rng.random() < 0.62 else (height, width)


def random_layout(scene: Scene, rng: random.Random) -> Layout:
    """Positions and diameters that don't overlap and mean what the scene says."""
    width, height = random_canvas(rng)
    is_alone = len(scene.shapes) == 1
    while True:
        placements = tuple(_random_placement(shape, width, height, is_alone, rng) for shape in scene.shapes)
        if _are_apart(placements):
            return Layout(width, height, placements)


def _random_placement(shape: Shape, width: int, height: int, is_alone: bool, rng: random.Random) -> Placement:
    cell_width, cell_height = width / 3, height / 3
    cell = min(cell_width, cell_height)
    if shape.size == "small":
        diameter = cell * rng.uniform(0.46, 0.58)
    elif is_alone and rng.random() < 0.5:
        # Alone, a shape may be as large as two thirds of the canvas in the center, less at the rim.
        diameter = cell * rng.uniform(0.8, 2.1 if shape.place == 4 else 1.35)
    else:
        diameter = cell * rng.uniform(0.76, 1.0)
    spread = rng.uniform(0.0, 0.26)
    x = (shape.column + 0.5 + rng.uniform(-spread, spread)) * cell_width
    y = (shape.row + 0.5 + rng.uniform(-spread, spread)) * cell_height
    radius = diameter / 2
    return Placement(shape, _clamped(x, radius, width), _clamped(y, radius, height), diameter)


def _clamped(value: float, radius: float, length: int) -> float:
    return min(max(value, radius), length - radius)


def _are_apart(placements: tuple[Placement, ...]) -> bool:
    for index, one in enumerate(placements):
        for other in placements[index + 1 :]:
            gap = max(abs(one.x - other.x), abs(one.y - other.y)) - (one.diameter + other.diameter) / 2
            if gap < 0.02 * max(one.diameter, other.diameter):
                return False
    return True


def paint(scene: Scene, layout: Layout, rng: random.Random) -> Image.Image:
    """The RGB picture, with what a file format did to it."""
    background = _jittered(rng.choice(_BACKGROUND_COLORS[scene.background]), rng, 6)
    picture = paint_background(layout.width, layout.height, background, rng)
    supersampling = rng.choice((1, 1, 3))
    for placement in layout.placements:
        _paint_shape(picture, placement, supersampling, rng)
    return through_file_format(picture, rng)


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """One of the many pictures of this scene."""
    return paint(scene, random_layout(scene, rng), rng)


def _jittered(color: Color, rng: random.Random, amount: int) -> Color:
    if rng.random() < 0.4:
        return color
    red, green, blue = (min(255, max(0, channel + rng.randint(-amount, amount))) for channel in color)
    return red, green, blue


def paint_background(width: int, height: int, color: Color, rng: random.Random) -> Image.Image:
    """A plain, shaded, grainy or faintly patterned area of about this color."""
    style = rng.random()
    if style < 0.6:
        return Image.new("RGB", (width, height), color)
    area = np.empty((height, width, 3), np.float32)
    area[:] = color
    across, down = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    if style < 0.75:
        strength, angle = rng.uniform(3, 14), rng.uniform(0, 2 * math.pi)
        area += strength * (math.cos(angle) * across[None, :, None] + math.sin(angle) * down[:, None, None])
    elif style < 0.9:
        noise = np.random.default_rng(rng.getrandbits(32)).standard_normal((height, width), dtype=np.float32)
        area += rng.uniform(1, 9) * noise[..., None]
    else:
        waves = rng.uniform(3, 40)
        direction = rng.choice((across[None, :], down[:, None], across[None, :] + down[:, None]))
        area += rng.uniform(2, 9) * np.sign(np.sin(direction * waves * math.pi))[..., None]
    return Image.fromarray(np.clip(area, 0, 255).astype(np.uint8))


def _paint_shape(picture: Image.Image, placement: Placement, supersampling: int, rng: random.Random) -> None:
    shape = placement.shape
    color = _jittered(rng.choice(_SHAPE_COLORS[shape.color]), rng, 12 if shape.color not in ("black", "white") else 6)
    outline = random_outline(shape.kind, rng)
    whole = mask(outline, placement.diameter, supersampling=supersampling)
    corner = (round(placement.x - whole.width / 2), round(placement.y - whole.height / 2))
    if rng.random() < 0.15 and shape.kind != "ring" and shape.color != "black":
        edge = rng.choice(((0, 0, 0), tuple(channel // 2 for channel in color)))
        picture.paste(edge, corner, whole)
        scale = 1 - max(rng.uniform(0.05, 0.12), 2 / placement.diameter)
        whole = mask(outline, placement.diameter, scale=scale, supersampling=supersampling)
    picture.paste(color, corner, whole)


def through_file_format(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The picture as it comes back from a JPEG (about half), a palette, or a lossless file (the same)."""
    choice = rng.random()
    if choice < 0.5:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=rng.randint(40, 100))
        return Image.open(buffer).convert("RGB")
    if choice < 0.54:
        return picture.quantize(rng.choice((16, 64, 256))).convert("RGB")
    return picture

"""Pictures with none of the known shapes: textures, plots, screens, text, gradients, landscapes, photo-like noise.

They teach the model to say that it sees nothing it knows. The same seed gives the same picture.
"""

import math
import random
import string
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from demo_model.drawing import Color, paint_background, random_canvas, through_file_format

Size = tuple[int, int]
Box = tuple[float, float, float, float]


def _color(rng: random.Random) -> Color:
    if rng.random() < 0.3:
        level = rng.choice((0, 255, rng.randint(0, 255)))
        return level, level, level
    return rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)


def _dark_or_light(rng: random.Random) -> Color:
    red, green, blue = rng.choice(((255, 255, 255), (250, 250, 250), (240, 242, 245), (30, 30, 34), (0, 0, 0)))
    return red, green, blue


def _numpy_rng(rng: random.Random) -> np.random.Generator:
    return np.random.default_rng(rng.getrandbits(32))


def _smooth_noise(size: Size, cells: int, numpy_rng: np.random.Generator) -> np.ndarray:
    """Noise of about `cells` bumps across, as float32 in [0, 1], shape (height, width)."""
    small = numpy_rng.integers(0, 256, (max(2, cells), max(2, cells)), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC), np.float32) / 255


def _blank(size: Size, rng: random.Random) -> Image.Image:
    return paint_background(*size, _color(rng), rng)


def _gradient(size: Size, rng: random.Random) -> Image.Image:
    start, end = np.array(_color(rng), np.float32), np.array(_color(rng), np.float32)
    across, down = np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1])
    angle = rng.uniform(0, math.pi / 2)
    share = math.cos(angle) * across[None, :] + math.sin(angle) * down[:, None]
    share = share / (math.cos(angle) + math.sin(angle))
    if rng.random() < 0.3:
        share = np.hypot(across[None, :] - rng.random(), down[:, None] - rng.random()).clip(0, 1)
    return Image.fromarray((start + (end - start) * share[..., None]).astype(np.uint8))


def _static(size: Size, rng: random.Random) -> Image.Image:
    numpy_rng = _numpy_rng(rng)
    channels = rng.choice((1, 3))
    grain = rng.choice((1, 1, 2, 4, 8))
    shape = (max(1, size[1] // grain), max(1, size[0] // grain), channels)
    noise = numpy_rng.integers(0, rng.randint(80, 256), shape, dtype=np.uint8)
    noise = np.repeat(noise, 3 // channels, axis=2)
    return Image.fromarray(noise).resize(size, rng.choice((Image.Resampling.NEAREST, Image.Resampling.BILINEAR)))


def _photo(size: Size, rng: random.Random) -> Image.Image:
    """Clouds of several scales in two or three colors, with grain and soft edges, as in a blurred photo."""
    numpy_rng = _numpy_rng(rng)
    area = np.zeros((size[1], size[0], 3), np.float32)
    weight, total = 1.0, 0.0
    fade = rng.uniform(0.4, 0.85)
    for octave in range(rng.randint(2, 6)):
        one, two = np.array(_color(rng), np.float32), np.array(_color(rng), np.float32)
        noise = _smooth_noise(size, 2 ** (octave + 1) + rng.randint(0, 2), numpy_rng)
        if rng.random() < 0.35:
            noise = ((noise > 0.5) * 1.0).astype(np.float32)
        area += weight * (one + (two - one) * noise[..., None])
        total += weight
        weight *= fade
    area = area / total + rng.uniform(0, 10) * numpy_rng.standard_normal((size[1], size[0], 1), dtype=np.float32)
    picture = Image.fromarray(np.clip(area, 0, 255).astype(np.uint8))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3))) if rng.random() < 0.4 else picture


def _landscape(size: Size, rng: random.Random) -> Image.Image:
    picture = _gradient(size, rng)
    draw = ImageDraw.Draw(picture)
    width, height = size
    for layer in range(rng.randint(1, 4)):
        base = height * (0.35 + 0.18 * layer + rng.uniform(-0.1, 0.1))
        phase, waves, rise = rng.uniform(0, 6), rng.uniform(1, 9), height * rng.uniform(0.02, 0.15)
        ridge = [
            (x * width, base + rise * (math.sin(phase + waves * x) + 0.4 * math.sin(3 * phase + 2.7 * waves * x)))
            for x in np.linspace(0, 1, 30)
        ]
        draw.polygon([(0, height), *ridge, (width, height)], fill=_color(rng))
    return picture


def _stripes(size: Size, rng: random.Random) -> Image.Image:
    across, down = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    angle, waves = rng.choice((0.0, math.pi / 2, rng.uniform(0, math.pi))), rng.uniform(4, 40)
    wave = np.sin((math.cos(angle) * across + math.sin(angle) * down) * waves * 2 * math.pi)
    if rng.random() < 0.4:
        other = angle + math.pi / 2
        waves = max(waves, 12.0)
        wave = wave * np.sin((math.cos(other) * across + math.sin(other) * down) * waves * 2 * math.pi)
    share = (wave > 0) if rng.random() < 0.5 else (wave + 1) / 2
    one, two = np.array(_color(rng)), np.array(_color(rng))
    return Image.fromarray((one + (two - one) * share[..., None]).astype(np.uint8))


def _write(draw: ImageDraw.ImageDraw, box: Box, color: Color, rng: random.Random) -> None:
    """Lines of made-up words inside the box."""
    left, top, right, bottom = box
    size = rng.randint(8, 22)
    while top + size < bottom:
        words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 9))) for _ in range(12)]
        text = " ".join(words)[: max(1, int((right - left) / (size * 0.55) * rng.uniform(0.3, 1)))]
        draw.text((left, top), text, fill=color, font_size=size)
        top += size * 1.3


def _text_page(size: Size, rng: random.Random) -> Image.Image:
    paper = _dark_or_light(rng)
    picture = Image.new("RGB", size, paper)
    ink = (20, 20, 20) if sum(paper) > 380 else (225, 225, 225)
    margin = rng.uniform(0.02, 0.2)
    box = (size[0] * margin, size[1] * margin, size[0] * (1 - margin / 2), size[1] * (1 - margin))
    _write(ImageDraw.Draw(picture), box, ink if rng.random() < 0.7 else _color(rng), rng)
    return picture


def _screen(size: Size, rng: random.Random) -> Image.Image:
    """Something like a window: bars, panels, lines of text, buttons."""
    picture = Image.new("RGB", size, _dark_or_light(rng))
    draw = ImageDraw.Draw(picture)
    width, height = size
    bar = height * rng.uniform(0.05, 0.15)
    for _ in range(rng.randint(2, 6)):
        left, top = rng.uniform(0, width * 0.7), rng.uniform(bar, height * 0.8)
        right, bottom = left + width * rng.uniform(0.2, 0.9), top + height * rng.uniform(0.05, 0.6)
        panel = _color(rng) if rng.random() < 0.5 else _dark_or_light(rng)
        draw.rectangle((left, top, right, bottom), fill=panel, outline=(160, 160, 160))
        ink = (30, 30, 30) if sum(panel) > 380 else (230, 230, 230)
        _write(draw, (left + 3, top + 3, min(right, width), min(bottom, height)), ink, rng)
    draw.rectangle((0, 0, width, bar), fill=_color(rng))
    if rng.random() < 0.5:
        draw.rectangle((0, bar, width * rng.uniform(0.1, 0.3), height), fill=_color(rng))
    return picture


def _plot(size: Size, rng: random.Random) -> Image.Image:
    """A line, bar, area or scatter plot with axes, a grid and labels."""
    paper = _dark_or_light(rng)
    picture = Image.new("RGB", size, paper)
    draw = ImageDraw.Draw(picture)
    ink = (40, 40, 40) if sum(paper) > 380 else (210, 210, 210)
    width, height = size
    left, top = width * rng.uniform(0.06, 0.16), height * rng.uniform(0.05, 0.15)
    right, bottom = width * rng.uniform(0.88, 0.98), height * rng.uniform(0.8, 0.92)
    for line in range(rng.choice((0, 4, 6))):
        y = top + (bottom - top) * line / 6
        draw.line((left, y, right, y), fill=(180, 180, 180))
    draw.line((left, top, left, bottom), fill=ink, width=rng.randint(1, 2))
    draw.line((left, bottom, right, bottom), fill=ink, width=rng.randint(1, 2))
    series = rng.choice((_lines, _bars, _points))
    series(draw, (left, top, right, bottom), rng)
    for tick in range(5):
        draw.text((left + (right - left) * tick / 5, bottom + 2), str(tick * 10), fill=ink, font_size=9)
    if rng.random() < 0.5:
        draw.text((width * 0.3, 1), "".join(rng.choices(string.ascii_letters, k=12)), fill=ink, font_size=10)
    return picture


def _lines(draw: ImageDraw.ImageDraw, box: Box, rng: random.Random) -> None:
    left, top, right, bottom = box
    for _ in range(rng.randint(1, 5)):
        count = rng.randint(4, 40)
        level, points = rng.random(), []
        for index in range(count):
            level = min(1, max(0, level + rng.uniform(-0.25, 0.25)))
            points.append((left + (right - left) * index / (count - 1), top + (bottom - top) * level))
        if rng.random() < 0.15:
            draw.polygon([(left, bottom), *points, (right, bottom)], fill=_color(rng))
        else:
            draw.line(points, fill=_color(rng), width=rng.randint(1, 4))


def _bars(draw: ImageDraw.ImageDraw, box: Box, rng: random.Random) -> None:
    left, top, right, bottom = box
    count = rng.randint(4, 16)
    step = (right - left) / count
    color = _color(rng)
    for index in range(count):
        start = left + index * step
        color = color if rng.random() < 0.7 else _color(rng)
        bar = (start + step * 0.15, bottom - (bottom - top) * rng.uniform(0.05, 1), start + step * 0.85, bottom)
        draw.rectangle(bar, fill=color)


def _points(draw: ImageDraw.ImageDraw, box: Box, rng: random.Random) -> None:
    left, top, right, bottom = box
    color = _color(rng)
    for _ in range(rng.randint(15, 80)):
        x, y, radius = rng.uniform(left, right), rng.uniform(top, bottom), rng.uniform(0.5, 2.5)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def _scribble(size: Size, rng: random.Random) -> Image.Image:
    picture = paint_background(*size, _color(rng), rng)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(1, 12)):
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        points = [(x, y)]
        for _ in range(rng.randint(2, 30)):
            x, y = x + rng.gauss(0, size[0] / 6), y + rng.gauss(0, size[1] / 6)
            points.append((x, y))
        draw.line(points, fill=_color(rng), width=rng.randint(1, 1 + max(1, min(size) // 60)), joint="curve")
    return picture


def _patches(size: Size, rng: random.Random) -> Image.Image:
    """Many overlapping slivers of many colors: a crowd, foliage, a mosaic."""
    picture = _gradient(size, rng)
    draw = ImageDraw.Draw(picture)
    reach = rng.uniform(0.05, 0.3)
    for _ in range(rng.randint(25, 120)):
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        corners = rng.randint(3, 7)
        draw.polygon(
            [(x + size[0] * rng.gauss(0, reach), y + size[1] * rng.gauss(0, reach)) for _ in range(corners)],
            fill=_color(rng),
        )
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2.5)))


SHAPELESS: dict[str, Callable[[Size, random.Random], Image.Image]] = {
    "blank": _blank, "gradient": _gradient, "static": _static, "photo": _photo, "landscape": _landscape,
    "stripes": _stripes, "text": _text_page, "screen": _screen, "plot": _plot, "scribble": _scribble,
    "patches": _patches,
}  # fmt: skip


def render_shapeless(rng: random.Random, kind: str | None = None) -> Image.Image:
    """A picture without any known shape, of the named kind or of a random one."""
    width, height = random_canvas(rng)
    if max(width, height) > 640:
        width, height = width // 2, height // 2
    picture = SHAPELESS[kind or rng.choice(tuple(SHAPELESS))]((width, height), rng)
    return through_file_format(picture, rng)

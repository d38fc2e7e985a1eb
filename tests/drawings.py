"""Images that the tests draw themselves, apart from the demo model's own generator."""

import base64
from io import BytesIO

from PIL import Image, ImageDraw

COLORS = {
    "red": (255, 0, 0),
    "blue": (0, 0, 255),
    "green": (0, 128, 0),
    "yellow": (255, 230, 0),
}
SHAPES = ("circle", "square", "triangle")


def draw(color: str, shape: str, size: tuple[int, int] = (240, 240)) -> Image.Image:
    """One large shape in the middle of a white canvas."""
    image = Image.new("RGB", size, "white")
    (width, height), radius = size, min(size) * 0.16
    x, y = width / 2, height / 2
    box = (x - radius, y - radius, x + radius, y + radius)
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse(box, fill=COLORS[color])
    elif shape == "square":
        pen.rectangle(box, fill=COLORS[color])
    else:
        pen.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=COLORS[color])
    return image


def encode(image: Image.Image, image_format: str = "PNG") -> bytes:
    buffer = BytesIO()
    image.save(buffer, image_format)
    return buffer.getvalue()


def png(color: str, shape: str, size: tuple[int, int] = (240, 240)) -> bytes:
    return encode(draw(color, shape, size))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def data_uri(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{b64(data)}"


def says(caption: str, color: str, shape: str) -> bool:
    """Whether a caption names this shape in this colour, and no other colour or shape of ours."""
    words = caption.lower().replace(",", " ").replace(".", " ").split()
    colors = [c for c in COLORS if c in words]
    shapes = [s for s in SHAPES if s in words]
    return colors == [color] and shapes == [shape]

"""How large a gallery's images are, and their bytes."""

from io import BytesIO
from typing import Final

from serve_app.messages import RgbImage

EDGE_PX: Final = 320
QUALITY: Final = 78  # of a JPEG: some 10 kB for each image


def jpeg_file(image: RgbImage, quality: int) -> bytes:
    """An image that is small already, as a file."""
    from PIL import Image

    made = BytesIO()
    Image.frombytes("RGB", (image.width, image.height), image.rgb).save(made, "JPEG", quality=quality)
    return made.getvalue()

"""Thumbnails of visitors' images, by the gate that stands before the models: nothing else opens such a file."""

import asyncio

from serve_app.config.http import ImageConfig
from serve_app.errors import RequestError
from serve_app.gallery.thumbnail import EDGE_PX, QUALITY, jpeg_file
from serve_app.images.gate import ImageBytes, ImageGate


class Thumbnails:
    """One image at a time, so that a visitor's large images don't fill the memory of the page's process."""

    def __init__(self, max_image_bytes: int) -> None:
        self._gate = ImageGate(
            ImageConfig(max_image_bytes=max_image_bytes, max_edge_px=EDGE_PX, url_policy="none", num_threads=1)
        )

    async def thumbnail(self, image: bytes) -> bytes | None:
        """A small JPEG; None for what is no image, or one that no model would get."""
        try:
            rgb = await self._gate.load(ImageBytes(image), "image")
        except RequestError:
            return None
        return await asyncio.to_thread(jpeg_file, rgb, QUALITY)

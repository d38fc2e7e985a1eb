"""JPEGs of the demo's own scenes at the size of a thumbnail and of a camera, and a server that gives them by URL.

Enlarged scenes with a camera's noise: about 3 MB at 12 megapixels, as a photo has, and with a caption that the demo
model knows. The server listens on loopback alone.
"""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from benchmarks.serving.workloads import Size
from demo_model.drawing import render
from demo_model.scenes import random_split_scene

SIZES: Final[dict[Size, tuple[int, int]]] = {"0.3mp": (640, 480), "12mp": (4000, 3000)}
NUM_IMAGES = 8  # different ones of each size, taken in turn
_NOISE = 3.0  # levels of 255, standard deviation
_QUALITY = 90


def draw_images(folder: Path) -> None:
    """Every image as `SIZE-NUMBER.jpg`; drawn where one is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for size, pixels in SIZES.items():
        for number in range(NUM_IMAGES):
            file = folder / file_name(size, number)
            if not file.exists():
                file.write_bytes(_jpeg(number, pixels))


def file_name(size: Size, number: int) -> str:
    return f"{size}-{number % NUM_IMAGES}.jpg"


def _jpeg(number: int, size: tuple[int, int]) -> bytes:
    rng = random.Random(f"serving benchmark/{number}")
    scene = render(random_split_scene(rng, held_out=True), rng).convert("RGB").resize(size, Image.Resampling.LANCZOS)
    noise = np.random.default_rng(number).normal(0, _NOISE, (size[1], size[0], 1)).astype(np.float32)
    noisy = np.clip(np.asarray(scene, np.float32) + noise, 0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class ImageShelf:
    """Where the images are, on disk and by URL."""

    folder: Path
    url: str

    def read(self, size: Size, number: int) -> bytes:
        return (self.folder / file_name(size, number)).read_bytes()

    def url_of(self, size: Size, number: int) -> str:
        return f"{self.url}/{file_name(size, number)}"


class _Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def shelf(folder: Path, port: int) -> Iterator[ImageShelf]:
    """The images, drawn and served inside the `with`."""
    draw_images(folder)
    with ThreadingHTTPServer(("127.0.0.1", port), partial(_Quiet, directory=str(folder))) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, name="images", daemon=True).start()
        try:
            yield ImageShelf(folder, f"http://127.0.0.1:{port}")
        finally:
            server.shutdown()

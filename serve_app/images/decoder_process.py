"""The process that decodes HEIC and JPEG XL, apart from the one that serves: `DecoderProcesses` starts it and asks.

Their files can make a decoder take any memory and time, whatever size their header says: tiles and overlays that
repeat, frames beyond the image's edges, parameters that lie. So this process has a bound of both from
whoever starts it, and ends where it goes beyond.

A request is a line of JSON and the file's bytes, an answer is a line of JSON and the pixels, or the refusal.
"""

import json
import os
import resource
import signal
import sys
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final

from PIL import Image

from serve_app.config.http import ImageConfig
from serve_app.errors import RequestError
from serve_app.images.formats import register_extra_formats
from serve_app.images.pixels import make_pillow_strict, plain
from serve_app.images.refusals import check_pixels, in_our_words
from serve_app.messages import ImageEdge, RgbImage

READY: Final = b"ready\n"
_CLOCK_PER_CPU: Final = 6  # a decoder that waits for itself takes no CPU and ends too


def _serve(config: ImageConfig, max_cpu_s: float, max_bytes: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started us says when to end, by closing our input
    answers = _own_output()
    make_pillow_strict(config)
    register_extra_formats()
    _bound_memory(max_bytes)
    answers.write(READY)
    answers.flush()
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        data = sys.stdin.buffer.read(request["num_bytes"])
        _start_clocks(max_cpu_s)
        header, pixels = _answer(data, request, config)
        _start_clocks(0)
        answers.write(json.dumps(header).encode() + b"\n" + pixels)
        answers.flush()


def _answer(data: bytes, request: dict[str, Any], config: ImageConfig) -> tuple[dict[str, Any], bytes]:
    try:
        image = _decoded(data, request["format"], config, ImageEdge(*request["edge"]) if request["edge"] else None)
    except RequestError as exc:
        if isinstance(exc.__cause__, MemoryError):
            sys.exit(1)
        return {"code": exc.code, "message": exc.message}, b""
    return {"width": image.width, "height": image.height}, image.rgb


def _decoded(data: bytes, image_format: str, config: ImageConfig, edge: ImageEdge | None) -> RgbImage:
    with in_our_words(data, config), Image.open(BytesIO(data), formats=[image_format]) as image:
        check_pixels(image.size, config)
        size = image.size
        image.load()
        if image.size != size:
            raise ValueError("the image has another size than its header says")
        if not image.info.get("primary", True):  # the library opens the first of a HEIC whose primary image is broken
            raise ValueError("the file's own image is broken")
        return plain(image, config, edge)


def _own_output() -> BinaryIO:
    """Standard output for our answers alone: what a library prints goes nowhere."""
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return answers


def _bound_memory(max_bytes: int) -> None:
    num_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = num_pages * resource.getpagesize() + max_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes no file


def _start_clocks(cpu_s: float) -> None:
    """Without handlers: the signals end the process, also while a library's code runs. 0 stops them."""
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, _CLOCK_PER_CPU * cpu_s)


if __name__ == "__main__":
    _serve(ImageConfig.model_validate_json(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))

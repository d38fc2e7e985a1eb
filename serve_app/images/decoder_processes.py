"""Hands HEIC and JPEG XL to processes of their own, which are bounded in memory and time.

Owns how many there are and what is said of an image that ended one. `decoder_process.py` is their side.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from queue import Empty, LifoQueue
from typing import IO, Any, Final

from serve_app.config.http import ImageConfig
from serve_app.errors import ImageTooLarge, InvalidImage
from serve_app.images.decoder_process import READY
from serve_app.messages import ImageEdge, RgbImage

MAX_CPU_S: Final = 10.0  # for one image: 50 million pixels take some 2
_INHERITED: Final = ("PATH", "LD_LIBRARY_PATH", "LANG")  # and no secret of the service
_MAX_LINE_BYTES: Final = 10_000


def max_decode_bytes(config: ImageConfig) -> int:
    """The memory that one image may take. Honest ones need up to some 16 bytes a pixel."""
    return (256 << 20) + 32 * config.max_image_pixels


class DecoderProcesses:
    """As many as decode at once, started at the first need and kept. Threads may share it."""

    def __init__(self, config: ImageConfig) -> None:
        self._config = config
        self._idle = LifoQueue[_DecoderProcess]()
        self._is_closed = False

    def decode(self, data: bytes, image_format: str, edge: ImageEdge | None) -> RgbImage:
        """The image as the gate's `load` describes it. Raises `InvalidImage` and `ImageTooLarge`."""
        process = self._free_process()
        try:
            image = process.decode(data, image_format, edge)
        except (InvalidImage, ImageTooLarge):
            self._keep(process)
            raise
        except (OSError, EOFError) as exc:
            process.end()
            raise InvalidImage(
                f"the image breaks its decoder, or takes it more than {MAX_CPU_S:.0f} seconds or "
                f"{max_decode_bytes(self._config) >> 20} MiB: save it as a JPEG or PNG"
            ) from exc
        self._keep(process)
        return image

    def close(self) -> None:
        """End those that wait; one that works ends with its image."""
        self._is_closed = True
        while process := self._idle_process():
            process.end()

    def _free_process(self) -> "_DecoderProcess":
        while process := self._idle_process():
            if process.is_alive:
                return process
            process.end()
        return _DecoderProcess(self._config)

    def _idle_process(self) -> "_DecoderProcess | None":
        try:
            return self._idle.get_nowait()
        except Empty:
            return None

    def _keep(self, process: "_DecoderProcess") -> None:
        self._idle.put(process)
        if self._is_closed:
            self.close()


class _DecoderProcess:
    def __init__(self, config: ImageConfig) -> None:
        settings = config.model_dump_json(include={"max_image_pixels", "max_edge_px", "background"})
        limits = (str(MAX_CPU_S), str(max_decode_bytes(config)))
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "serve_app.images.decoder_process", settings, *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # strangers write no log of ours
            # One arena: each more would take 64 MiB of the bound without a use.
            env=inherited | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "MALLOC_ARENA_MAX": "1"},
        )
        assert self._process.stdin
        assert self._process.stdout
        self._requests: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout
        if self._answers.readline(len(READY)) != READY:
            self.end()
            raise RuntimeError(
                "the process that decodes HEIC and JPEG XL doesn't start: can the extra 'images' be loaded?"
            )

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def decode(self, data: bytes, image_format: str, edge: ImageEdge | None) -> RgbImage:
        """Raises `OSError` or `EOFError` where the process ended over it."""
        request = {"format": image_format, "num_bytes": len(data), "edge": (edge.which, edge.px) if edge else None}
        self._requests.write(json.dumps(request).encode() + b"\n")
        self._requests.write(data)
        self._requests.flush()
        if not (line := self._answers.readline(_MAX_LINE_BYTES)):
            raise EOFError
        answer: dict[str, Any] = json.loads(line)
        if "code" in answer:
            error_class = ImageTooLarge if answer["code"] == ImageTooLarge.code else InvalidImage
            raise error_class(answer["message"])
        num_bytes = answer["width"] * answer["height"] * 3
        rgb = self._answers.read(num_bytes)
        if len(rgb) < num_bytes:
            raise EOFError
        return RgbImage(answer["width"], answer["height"], rgb)

    def end(self) -> None:
        self._process.kill()
        for pipe in (self._requests, self._answers):
            with suppress(OSError):  # what it hadn't read
                pipe.close()
        self._process.wait()

"""One image's request: reads the file, sends it, and sorts failures by what to do about them.

`Refused` holds all workers back, `Broken` is worth another try, and a `Row` is final. A `ServiceError` concerns the
whole run rather than this image, and ends it. An image that is too large for the service is made smaller and sent
again; a HEIC or JPEG XL that it can't read is made a JPEG.
"""

import asyncio
import os
from dataclasses import dataclass, field, replace
from typing import Any

from serve_app.cli.captioning.finish import Finish
from serve_app.cli.captioning.images import extension_of, is_address
from serve_app.cli.captioning.rows import MORE, CaptionSettings, Row
from serve_app.cli.captioning.same import SameImages
from serve_app.cli.captioning.shrink import readable, smaller
from serve_app.cli.captioning.templates import Template
from serve_app.client.api import ApiClient
from serve_app.client.errors import BrokenOff, ServiceError, Unreachable
from serve_app.images.kinds import kind_of

# So that `concurrency` images always fit in memory. Services take far less.
LARGEST_FILE_BYTES = 256 * 1024 * 1024
# A connection that breaks while more than this is sent was perhaps broken because of it.
_LARGE_BYTES = 4_000_000
# Parameters of the run: every other image would be refused too.
_RUN_PARAMS = {
    "model", "style", "length", "options", "name", "prompt", "max_tokens", "seed", "language", "task", "format",
    "guard", "temperature",
}  # fmt: skip
_RUN_CODES = {"model_not_found", "unsupported_task", "route_not_found", "method_not_allowed"}
_TOO_LARGE = {"body_too_large", "image_too_large"}


@dataclass(eq=False)
class Refused(Exception):
    """The service takes nothing more for now (429, 503)."""

    error: ServiceError


@dataclass(eq=False)
class Broken(Exception):
    """The service failed at this image in a way that may pass. `row` is the image's result if it doesn't."""

    row: Row


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """The request for every image. `seed` and `guard` don't decide whether a row counts as done."""

    settings: CaptionSettings
    max_tokens: int | None = None
    seed: int | None = None
    guard: bool = False
    finish: Finish = field(default_factory=Finish)
    same: SameImages | None = None  # where the same bytes aren't captioned twice
    text_extension: str = ".txt"  # of the file that `{text}` stands for

    def fields(self, file: str) -> dict[str, Any]:
        """The request's fields for an image, without those that are left to the service's defaults."""
        options: dict[str, Any] = {"max_tokens": self.max_tokens, "seed": self.seed, "guard": self.guard or None}
        if self.settings.prompt is not None:
            options["prompt"] = self._words(self.settings.prompt, file)
        return self.settings.fields | {name: value for name, value in options.items() if value is not None}

    async def send(self, client: ApiClient, file: str) -> Row:
        """The row of one image. Raises `Refused`, `Broken`, `Unreachable`, or `ServiceError` for the whole run."""
        if is_address(file):
            return await self._ask(client, file, file)
        try:
            data = await asyncio.to_thread(_read, file)
        except OSError as exc:
            return self.failure(file, "unreadable_file", f"the file can't be read: {exc.strerror}")
        if self.same is None:
            return await self._send(client, file, data)
        own_words = (self.fields(file), self._words(self.finish.prepend, file), self._words(self.finish.append, file))
        return await self.same.row(file, data, repr(own_words), lambda: self._send(client, file, data))

    async def _send(self, client: ApiClient, file: str, data: bytes) -> Row:
        """Ask, with a smaller image each time that it is too large, and a JPEG where the service can't read it."""
        num_smaller = 0
        while True:
            try:
                row = await self._ask(client, file, data)
                if row.error_code == "invalid_image":
                    made, hint = await asyncio.to_thread(readable, data)
                    if made is None:
                        return replace(row, error_message=f"{row.error_message}{hint}")
                    data = made
                    continue
                if row.error_code not in _TOO_LARGE:
                    return row
            except Broken as exc:
                if exc.row.error_code != "connection_broken" or len(data) < _LARGE_BYTES:
                    raise
                row = exc.row
            made = await asyncio.to_thread(smaller, data, num_smaller)
            if made is None:
                return row
            data, num_smaller = made, num_smaller + 1

    def failure(self, file: str, code: str, message: str) -> Row:
        return Row(file, self.settings, error_code=code, error_message=message)

    async def _ask(self, client: ApiClient, file: str, image: bytes | str) -> Row:
        try:
            return self._row(file, await client.caption(self.fields(file), image, _media_type(file, image)))
        except Unreachable:
            raise
        except BrokenOff as exc:
            size = f" The image has {len(image):,} bytes: more than the service takes may look like this"
            message = exc.message if is_address(file) else f"{exc.message}.{size}"
            raise Broken(self.failure(file, "connection_broken", message)) from exc
        except ServiceError as exc:
            return self._judge(file, exc)

    def _row(self, file: str, answer: dict[str, Any]) -> Row:
        try:
            item = answer["data"][0]
            if "error" in item:
                return self.failure(file, str(item["error"]["code"]), str(item["error"]["message"]))
            text = item["caption"].encode("utf-8", "replace").decode()
            row = Row(
                file, self.settings, text, str(answer["model"]), item["finish_reason"], item["usage"],
                max_tokens=self.max_tokens, more={name: item[name] for name in MORE if name in item},
            )  # fmt: skip
        except (KeyError, IndexError, TypeError, AttributeError):
            return self.failure(file, "bad_answer", "the service's answer holds no caption")
        if not text.strip() and not row.more.get("regions"):
            return row.as_failure("empty_caption", "the model answered without a word: try another style or --guard")
        return replace(row, caption=self.finish.apply(text, lambda words: self._words(words, file)))

    def _words(self, text: str, file: str) -> str:
        return Template(text, self.text_extension).of(file)

    def _judge(self, file: str, error: ServiceError) -> Row:
        status = error.status or 0
        row = self.failure(file, error.code or f"http_{status}", error.message)
        if status in (429, 503) and error.code != "replica_died":
            raise Refused(error)
        if status >= 500:
            raise Broken(row)
        is_about_run = status in (401, 403, 404, 405) or status < 400
        run_params = _RUN_PARAMS | self.settings.fields.keys()
        if is_about_run or error.code in _RUN_CODES or _field(error.param) in run_params:
            raise error
        return row


def _field(param: str | None) -> str | None:
    """The field's name, which is `options` for `options[2]`."""
    return param.partition("[")[0] if param else None


def _media_type(file: str, image: bytes | str) -> str:
    kind = kind_of(image, extension_of(file)) if isinstance(image, bytes) else None
    return (kind and kind.media_type) or "application/octet-stream"


def _read(file: str) -> bytes:
    with open(file, "rb") as opened:
        if (size := os.fstat(opened.fileno()).st_size) > LARGEST_FILE_BYTES:
            raise OSError(0, f"it has {size:,} bytes, and at most {LARGEST_FILE_BYTES:,} are sent")
        return opened.read(LARGEST_FILE_BYTES)

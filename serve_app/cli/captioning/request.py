"""One image's request: reads the file, sends it, and sorts failures by what to do about them.

`Refused` holds all workers back, `Broken` is worth another try, and a `Row` is final. A `ServiceError` concerns the
whole run rather than this image, and ends it.
"""

import asyncio
import os
from dataclasses import asdict, dataclass
from typing import Any

from serve_app.cli.captioning.images import MEDIA_TYPES, extension_of
from serve_app.cli.captioning.rows import CaptionSettings, Row
from serve_app.client.api import ApiClient
from serve_app.client.errors import BrokenOff, ServiceError, Unreachable

# So that `concurrency` images always fit in memory. Services take far less.
LARGEST_FILE_BYTES = 256 * 1024 * 1024
# Parameters of the run: every other image would be refused too.
_RUN_PARAMS = {"model", "style", "length", "options", "name", "prompt", "max_tokens", "seed"}
_RUN_CODES = {"model_not_found", "unsupported_task", "route_not_found", "method_not_allowed"}


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
    """The request for every image. `max_tokens` and `seed` don't decide whether a row counts as done."""

    settings: CaptionSettings
    max_tokens: int | None = None
    seed: int | None = None

    @property
    def fields(self) -> dict[str, str | list[str]]:
        """The form's fields, without those that are left to the service's defaults."""
        fields: dict[str, Any] = asdict(self.settings) | {"options": list(self.settings.options) or None}
        fields |= {"max_tokens": self.max_tokens, "seed": self.seed}
        return {
            name: value if isinstance(value, list) else str(value)
            for name, value in fields.items()
            if value is not None
        }

    async def send(self, client: ApiClient, file: str) -> Row:
        """The row of one image. Raises `Refused`, `Broken`, `Unreachable`, or `ServiceError` for the whole run."""
        try:
            data = await asyncio.to_thread(_read, file)
        except OSError as exc:
            return self.failure(file, "unreadable_file", f"the file can't be read: {exc.strerror}")
        # no name of ours goes out; the extension is all a service may want to know
        image = (f"image{extension_of(file)}", data, MEDIA_TYPES.get(extension_of(file)))
        try:
            answer = await client.caption(self.fields, image)
        except Unreachable:
            raise
        except BrokenOff as exc:
            size = f"{len(data):,} bytes"
            message = f"{exc.message}. The image has {size}: more than the service takes may look like this"
            raise Broken(self.failure(file, "connection_broken", message)) from exc
        except ServiceError as exc:
            return self._judge(file, exc)
        return self._row(file, answer)

    def failure(self, file: str, code: str, message: str) -> Row:
        return Row(file, self.settings, error_code=code, error_message=message)

    def _row(self, file: str, answer: dict[str, Any]) -> Row:
        try:
            item = answer["data"][0]
            if "error" in item:
                return self.failure(file, str(item["error"]["code"]), str(item["error"]["message"]))
            text = item["caption"].encode("utf-8", "replace").decode()
            finish_reason, usage = item["finish_reason"], item["usage"]
            return Row(file, self.settings, text, str(answer["model"]), finish_reason, usage)
        except (KeyError, IndexError, TypeError, AttributeError):
            return self.failure(file, "bad_answer", "the service's answer holds no caption")

    def _judge(self, file: str, error: ServiceError) -> Row:
        status = error.status or 0
        row = self.failure(file, error.code or f"http_{status}", error.message)
        if status in (429, 503) and error.code != "replica_died":
            raise Refused(error)
        if status >= 500:
            raise Broken(row)
        is_about_run = status in (401, 403, 404, 405) or status < 400
        if is_about_run or error.code in _RUN_CODES or _field(error.param) in _RUN_PARAMS:
            raise error
        return row


def _field(param: str | None) -> str | None:
    """The field's name, which is `options` for `options[2]`."""
    return param.partition("[")[0] if param else None


def _read(file: str) -> bytes:
    with open(file, "rb") as opened:
        if (size := os.fstat(opened.fileno()).st_size) > LARGEST_FILE_BYTES:
            raise OSError(0, f"it has {size:,} bytes, and at most {LARGEST_FILE_BYTES:,} are sent")
        return opened.read(LARGEST_FILE_BYTES)

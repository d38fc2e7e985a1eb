"""One image's request: reads the file, sends it, and sorts failures by what to do about them.

`Refused` holds all workers back, `Broken` is worth another try, and a `Row` is final. A `ServiceError` concerns the
whole run rather than this image, and ends it. An image that is too large for the service is made smaller and sent
again; a HEIC or JPEG XL that it can't read is made a JPEG.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from serve_app.cli.captioning.finish import Finish
from serve_app.cli.captioning.inputs.image import FoundImage
from serve_app.cli.captioning.names import extension_of
from serve_app.cli.captioning.outputs.rows import MORE, CaptionSettings, Row
from serve_app.cli.captioning.same import SameImages
from serve_app.cli.captioning.shrink import as_jpeg, smaller
from serve_app.cli.captioning.templates import Template
from serve_app.cli.captioning.together import Together
from serve_app.client.errors import BrokenOff, ServiceError, Unreachable
from serve_app.images.kinds import kind_of

# A connection that breaks while more than this is sent was perhaps broken because of it.
_LARGE_BYTES = 4_000_000
# Parameters of the run: every other image would be refused too.
_RUN_PARAMS = {
    "model", "style", "length", "options", "name", "prompt", "max_tokens", "seed", "language", "task", "format",
    "guard", "temperature", "n",
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
class Rewrite:
    """A second model's turn: the words for it, with `{caption}` in them. `model` None: the first that chats."""

    prompt: str
    model: str | None = None


@dataclass(slots=True)
class Work:
    """One image on its way. What was read and captioned stays between the tries."""

    image: FoundImage
    data: bytes | None = field(default=None, repr=False)
    captioned: Row | None = None


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
    rewrite: Rewrite | None = None

    def fields(self, image: FoundImage) -> dict[str, Any]:
        """The request's fields for an image, without those that are left to the service's defaults."""
        options: dict[str, Any] = {"max_tokens": self.max_tokens, "seed": self.seed, "guard": self.guard or None}
        if self.settings.prompt is not None:
            options["prompt"] = self._words(self.settings.prompt, image)
        return self.settings.fields | {name: value for name, value in options.items() if value is not None}

    async def send(self, service: Together, work: Work) -> Row:
        """The row of one image. Raises `Refused`, `Broken`, `Unreachable`, or `ServiceError` for the whole run."""
        image = work.image
        if image.is_fetched_by_service:
            return await self._caption(service, work, image.path)
        try:
            data = work.data = work.data if work.data is not None else await asyncio.to_thread(image.read)
        except OSError as exc:
            return self.failure(image.path, "unreadable_file", f"the file can't be read: {exc.strerror}")
        if self.same is None:
            return await self._caption(service, work, data)
        words = (self.finish.prepend, self.finish.append, self.rewrite.prompt if self.rewrite else "")
        own_words = (self.fields(image), *(self._words(text, image) for text in words))
        return await self.same.row(image.path, data, repr(own_words), lambda: self._caption(service, work, data))

    async def _caption(self, service: Together, work: Work, source: bytes | str) -> Row:
        """The captioned row, rewritten and finished as far as that is asked for."""
        row = work.captioned = work.captioned or await self._send(service, work.image, source)
        if row.is_failed:
            return row
        if self.rewrite is not None:
            row = await self._rewrite(service, work.image, row, self.rewrite)
        return row if row.is_failed else self._finished(row, work.image)

    async def _send(self, service: Together, image: FoundImage, source: bytes | str) -> Row:
        """Ask, with a JPEG of what the service doesn't take, and a smaller image each time that it is too large."""
        if isinstance(source, bytes) and not await self._is_taken(service, source):
            made, reason = await asyncio.to_thread(as_jpeg, source)
            if made is None:
                return self.failure(image.path, "unsupported_image", reason)
            source = made
        num_smaller = 0
        while True:
            try:
                row = await self._ask(service, image, source)
                if row.error_code not in _TOO_LARGE:
                    return row
            except Broken as exc:
                if exc.row.error_code != "connection_broken" or len(source) < _LARGE_BYTES:
                    raise
                row = exc.row
            made = await asyncio.to_thread(smaller, source, num_smaller) if isinstance(source, bytes) else None
            if made is None:
                return row
            source, num_smaller = made, num_smaller + 1

    def failure(self, file: str, code: str, message: str) -> Row:
        return Row(file, self.settings, error_code=code, error_message=message)

    async def _is_taken(self, service: Together, data: bytes) -> bool:
        """Whether the service may be sent the image as it is: all take what is no HEIC or JPEG XL, or say why not."""
        kind = kind_of(data)
        if kind is None or kind.extra_format is None:
            return True
        try:
            return kind.name in await service.image_formats(self.settings.model)
        except Unreachable:
            raise
        except ServiceError as exc:
            if exc.status in (429, 503):
                raise Refused(exc) from exc
            return False

    async def _ask(self, service: Together, image: FoundImage, source: bytes | str) -> Row:
        with self._sorted_failures(image.path, len(source) if isinstance(source, bytes) else None) as failed:
            answer = await service.caption(self.fields(image), source, _media_type(image.path, source))
            return self._row(image.path, answer)
        return failed[0]

    async def _rewrite(self, service: Together, image: FoundImage, row: Row, rewrite: Rewrite) -> Row:
        """The row with what the second model made of its caption, which stays as the `original`."""
        prompt = Template(rewrite.prompt, self.text_extension).of(image, row.caption)
        body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
        options = {"model": rewrite.model, "seed": self.seed, "max_tokens": self.max_tokens}
        body |= {name: value for name, value in options.items() if value is not None}
        with self._sorted_failures(image.path, None) as failed:
            answer = await service.chat(body)
            try:
                choice = answer["choices"][0]
                text, finish_reason = choice["message"]["content"].strip(), choice["finish_reason"]
            except (KeyError, IndexError, TypeError, AttributeError):
                return self.failure(image.path, "bad_answer", "the second model's answer holds no text")
            if not text:
                return self.failure(image.path, "empty_caption", "the second model answered without a word")
            more = row.more | {"original": row.caption}
            return replace(row, caption=text, finish_reason=finish_reason, more=more)
        return failed[0]

    @contextmanager
    def _sorted_failures(self, file: str, num_bytes: int | None) -> Iterator[list[Row]]:
        """Puts a failure that is final in the list, and raises the others as `send` does."""
        failed: list[Row] = []
        try:
            yield failed
        except Unreachable:
            raise
        except BrokenOff as exc:
            size = f". The image has {num_bytes:,} bytes: more than the service takes may look like this"
            message = exc.message if num_bytes is None else exc.message + size
            raise Broken(self.failure(file, "connection_broken", message)) from exc
        except ServiceError as exc:
            failed.append(self._judge(file, exc))

    def _row(self, file: str, answer: dict[str, Any]) -> Row:
        try:
            item = answer["data"][0]
            if "error" in item:
                return self.failure(file, str(item["error"]["code"]), str(item["error"]["message"]))
            text = item["caption"].encode("utf-8", "replace").decode()
            reasons = [item["finish_reason"], *(each["finish_reason"] for each in item.get("captions", ()))]
            row = Row(
                file, self.settings, text, str(answer["model"]), "length" if "length" in reasons else reasons[0],
                item["usage"], max_tokens=self.max_tokens, more={name: item[name] for name in MORE if name in item},
            )  # fmt: skip
        except (KeyError, IndexError, TypeError, AttributeError):
            return self.failure(file, "bad_answer", "the service's answer holds no caption")
        if not text.strip() and not row.more.get("regions"):
            return row.as_failure("empty_caption", "the model answered without a word: try another style or --guard")
        return row

    def _finished(self, row: Row, image: FoundImage) -> Row:
        def finished(text: str) -> str:
            return self.finish.apply(text, lambda words: self._words(words, image))

        more = row.more
        if "captions" in more:
            more = more | {"captions": [each | {"caption": finished(each["caption"])} for each in more["captions"]]}
        return replace(row, caption=finished(row.caption or ""), more=more)

    def _words(self, text: str, image: FoundImage) -> str:
        return Template(text, self.text_extension).of(image)

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

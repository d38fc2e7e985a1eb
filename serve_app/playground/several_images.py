"""Several images captioned beside each other, as entries of a gallery. Knows nothing of pages."""

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from serve_app.gallery.page import Entry, findings_in
from serve_app.playground.fields import Fields
from serve_app.playground.guarded_blocks import uploaded
from serve_app.playground.service import Refused, Service, Visitor
from serve_app.playground.thumbnails import Thumbnails

MAX_IMAGES = 32
MAX_BYTES = 200_000_000  # of a visitor's images together
_NUM_AT_ONCE = 4  # so many of them are in memory, and wait at the service
_TICK_S = 1.0
_LONGEST_NAME = 200  # characters

File = dict[str, Any]  # an upload, as Gradio describes it: its `path`, and its `orig_name`


class SeveralImages:
    """A visitor's images, each captioned by a request of its own."""

    def __init__(self, service: Service, thumbnails: Thumbnails, fields: Fields, visitor: Visitor) -> None:
        self._service = service
        self._thumbnails = thumbnails
        self._fields = fields
        self._visitor = visitor

    async def entries(self, files: Sequence[File]) -> AsyncGenerator[list[Entry | None]]:
        """Each file's entry, None until it has come. An image that is refused has its reason and ends no other.

        Yields where something came, and every second: Gradio sees only then that its visitor has left. Closing the
        generator ends the requests that run.
        """
        turns = asyncio.Semaphore(_NUM_AT_ONCE)

        async def in_turn(file: File) -> Entry:
            async with turns:
                return await self._entry(file)

        tasks = [asyncio.create_task(in_turn(file)) for file in files]
        waiting = set(tasks)
        try:
            while waiting:
                _, waiting = await asyncio.wait(waiting, timeout=_TICK_S, return_when=asyncio.FIRST_COMPLETED)
                yield [task.result() if task.done() else None for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _entry(self, file: File) -> Entry:
        name, thumbnail = _name(file), None
        try:
            data = await asyncio.to_thread(uploaded, file)
            thumbnail = await self._thumbnails.thumbnail(data)
            caption = await self._service.whole_caption(data, self._fields, self._visitor)
        except Refused as refused:
            return Entry(name, error=str(refused), thumbnail=thumbnail)
        lists_tags = self._fields.get("style") == "tags"
        findings = findings_in(
            caption.text, caption.prompt, caption.guard, is_cut=caption.is_cut, lists_tags=lists_tags
        )
        return Entry(name, caption.text, findings=findings, thumbnail=thumbnail)


def chosen_files(files: Any) -> list[File]:
    """The uploads that a visitor chose. Raises `Refused` for none, too many, or what is no upload."""
    if not files:
        raise Refused("there are no images: choose some")
    if not isinstance(files, list) or not all(_is_upload(file) for file in files):
        raise Refused("images are wanted where something else was sent")
    if len(files) > MAX_IMAGES:
        number = f"{len(files)} images are more than {MAX_IMAGES}"
        raise Refused(f"{number}: choose fewer, or caption a folder with `serve-app caption`")
    if sum(_num_bytes(file["path"]) for file in files) > MAX_BYTES:
        raise Refused(f"the images have more than {MAX_BYTES / 1e6:.0f} MB together: choose fewer, or smaller ones")
    return files


def _is_upload(file: Any) -> bool:
    return isinstance(file, dict) and isinstance(file.get("path"), str)


def _num_bytes(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # its own entry says that it is gone
        return 0


def _name(file: File) -> str:
    """As the visitor's machine called it, on one line."""
    name = file.get("orig_name")
    text = name if isinstance(name, str) and name.strip() else os.path.basename(file["path"])
    return " ".join(text.encode("utf-8", "replace").decode().split())[:_LONGEST_NAME]

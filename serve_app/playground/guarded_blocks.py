"""Gradio's Blocks, without what Gradio does to visitors' files: it fetches none, and reads none but those uploaded.

Events that take images are made with `preprocess=False`, so that Gradio decodes none either: they get a dict with a
`path` or a `url`, of which `image_of` makes what is sent to the service, whose own gate looks at it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from serve_app.playground.service import Refused

_ADDRESSES = ("http://", "https://", "data:")


class GuardedBlocks(gr.Blocks):  # type: ignore[misc] # Gradio's classes are untyped
    """An address stands for an image, unfetched, and is refused anywhere else; a path must be an upload's."""

    async def preprocess_data(self, block_fn: Any, inputs: list[Any], *rest: Any, **options: Any) -> Any:
        inputs, addresses = list(inputs), {}
        for index, (block, value) in enumerate(zip(block_fn.inputs, inputs, strict=False)):
            address = _address_of(value) if isinstance(block, gr.Image) else None
            if address is not None:
                inputs[index], addresses[index] = None, address
            else:
                for file in _files_in(value):
                    self._check(file)
        processed = await super().preprocess_data(block_fn, inputs, *rest, **options)
        for index, address in addresses.items():
            processed[index] = {"path": None, "url": address}
        return processed

    def _check(self, file: dict[str, Any]) -> None:
        if _address_of(file) is not None:
            raise gr.Error("this input takes no file from an address", print_exception=False)
        if not _is_below(file["path"], self.GRADIO_CACHE):
            raise gr.Error("this file wasn't uploaded here: upload it", print_exception=False)


def image_of(file: dict[str, Any]) -> bytes | str:
    """What is sent to the service: an uploaded file's bytes, or the address. Raises `Refused` if it is gone."""
    address = _address_of(file)
    if address is not None:
        return address
    return uploaded(file)


def uploaded(file: dict[str, Any]) -> bytes:
    """An upload's bytes. Raises `Refused` if it is gone."""
    try:
        return Path(file["path"]).read_bytes()
    except OSError as exc:
        raise Refused("this image isn't kept any more: upload it again") from exc


def _is_below(path: str, folder: str) -> bool:
    try:
        return Path(path).resolve().is_relative_to(Path(folder).resolve())
    except ValueError:  # a null byte
        return False


def _address_of(value: Any) -> str | None:
    """Gradio's clients put it into `path`, a browser's paste into `url`; an upload's `url` is one of this page."""
    if not isinstance(value, dict):
        return None
    path, url = value.get("path"), value.get("url")
    if isinstance(path, str) and path:
        return path if path.startswith(_ADDRESSES) else None
    return url if isinstance(url, str) and url.startswith(_ADDRESSES) else None


def _files_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a visitor's input that could be taken for a file."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str) or _address_of(value) is not None:
            yield value
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _files_in(item)

"""Several images, captioned beside each other and shown as the gallery that `serve-app gallery` writes."""

import html
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from serve_app.gallery.page import Entry, page
from serve_app.playground.caption_inputs import CaptionInputs, fields_of
from serve_app.playground.fields import without_empty
from serve_app.playground.service import Service
from serve_app.playground.several_images import MAX_IMAGES, SeveralImages, chosen_files
from serve_app.playground.showing import Update, refusals_shown, visitor_of
from serve_app.playground.thumbnails import Thumbnails

# The gallery stands in the frame only, so that no copy of it lies where others could fetch it.
_DOWNLOAD = """() => {
    const frame = document.querySelector("#several-gallery iframe");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([frame.srcdoc], {type: "text/html"}));
    link.download = "gallery.html";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}"""


class SeveralImagesTab:
    def __init__(self, service: Service, thumbnails: Thumbnails) -> None:
        self._service = service
        self._thumbnails = thumbnails
        with gr.Row():
            with gr.Column():
                images = gr.File(
                    label=f"Images ({MAX_IMAGES} at most)", file_count="multiple", file_types=["image"],
                    type="filepath", height=240, elem_id="several-images",
                )  # fmt: skip
                inputs = CaptionInputs(service, "several")
                self.model = inputs.model
                guard = gr.Checkbox(label="Guard: ask again after a bad caption", elem_id="several-guard")
                with gr.Row():
                    ask = gr.Button("Caption all", variant="primary", elem_id="several-button")
                    stop = gr.Button("Stop", elem_id="several-stop")
            with gr.Column():
                progress = gr.Markdown("*No image has been captioned yet.*", elem_id="several-progress")
                captions = gr.Textbox(
                    label="Captions as they come",
                    lines=14,
                    max_lines=14,
                    buttons=["copy"],
                    elem_id="several-captions",
                )
        came = gr.State([])
        download = gr.Button("Download the gallery", visible=False, elem_id="several-download")
        gallery = gr.HTML(elem_id="several-gallery")
        asking = ask.click(
            self.captions,
            [images, *inputs.components, guard],
            [came, progress, captions, gallery, download],
            api_visibility="private",
            show_progress="hidden",
            preprocess=False,
        )
        stop.click(self.gallery, [came], [gallery, download], cancels=[asking], api_visibility="private")
        download.click(None, None, None, js=_DOWNLOAD)

    async def captions(
        self,
        images: Any,
        model: str | None,
        style: str | None,
        length: str | None,
        options: list[str] | None,
        name: str | None,
        guard: bool | None,
        request: gr.Request,
    ) -> AsyncGenerator[tuple[list[Entry], str, str, Any, Any]]:
        """What came so far: its entries, how many those are, their texts; and the gallery, once all came."""
        with refusals_shown():
            files = chosen_files(images)
            fields = fields_of(model, style, length, options, name) | {"guard": True if guard else None}
            several = SeveralImages(self._service, self._thumbnails, without_empty(fields), visitor_of(request))
            begun_s, came = time.monotonic(), list[Entry]()
            yield came, _progress(came, len(files), 0.0), "", "", gr.update(visible=False)
            async with aclosing(several.entries(files)) as growing:
                async for entries in growing:
                    came = [entry for entry in entries if entry is not None]
                    progress = _progress(came, len(files), time.monotonic() - begun_s)
                    yield came, progress, _texts(came), gr.skip(), gr.skip()
            yield came, gr.skip(), gr.skip(), *self.gallery(came)

    def gallery(self, came: Sequence[Entry]) -> tuple[Any, Update]:
        """The entries' page, and the button to download it; where nothing came, both stay as they are."""
        if not came:
            return gr.skip(), gr.skip()
        number = "1 image" if len(came) == 1 else f"{len(came)} images"
        return _frame(page(f"Captions: {number}", came)), gr.update(visible=True)


def _progress(came: Sequence[Entry], num_images: int, took_s: float) -> str:
    num_failed = sum(entry.error is not None for entry in came)
    failed = f" · {num_failed} failed" if num_failed else ""
    return f"**{len(came)} of {num_images}**{failed} · {took_s:.0f} s"


def _texts(came: Sequence[Entry]) -> str:
    """A paragraph for each entry."""
    return "\n\n".join(f"{entry.name}: {entry.caption if entry.error is None else entry.error}" for entry in came)


def _frame(document: str) -> str:
    """The page in a frame that may run the page's own script and reaches nothing of the page around it."""
    return (
        '<iframe title="Gallery" sandbox="allow-scripts" allow="clipboard-write" '
        'style="width: 100%; height: 80vh; border: 0; border-radius: 8px" '
        f'srcdoc="{html.escape(document)}"></iframe>'
    )

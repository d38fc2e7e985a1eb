"""One image, captioned by several models at once."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr

from serve_app.families import STYLES
from serve_app.playground.service import Refused, Service, side_by_side
from serve_app.playground.showing import (
    SHOW_EVERY_S,
    File,
    Update,
    address_input,
    chosen_image,
    image_input,
    refusals_shown,
    speed_text,
    visitor_of,
)

MAX_MODELS = 4


class SideBySideTab:
    def __init__(self, service: Service) -> None:
        self._service = service
        with gr.Row():
            with gr.Column():
                image, address = image_input("compare-image"), address_input()
            with gr.Column():
                self.models = gr.Dropdown(
                    label=f"Models ({MAX_MODELS} at most)", choices=[], multiselect=True, max_choices=MAX_MODELS
                )
                style = gr.Radio(label="Style", choices=list(STYLES), value=STYLES[0])
                ask = gr.Button("Caption with each", variant="primary", elem_id="compare-button")
        columns: list[Any] = []
        with gr.Row():
            for number in range(MAX_MODELS):
                with gr.Column(visible=False, min_width=200) as column:
                    caption = gr.Textbox(label="Caption", lines=6, elem_id=f"compare-{number}")
                    columns += [column, caption, gr.Markdown(elem_id=f"compare-speed-{number}")]
        ask.click(
            self.compare, [image, address, self.models, style], columns, api_visibility="private", preprocess=False
        )

    async def compare(
        self, image: File | None, address: str | None, models: list[str] | None, style: str, request: gr.Request
    ) -> AsyncGenerator[list[Update]]:
        """For each of `MAX_MODELS` columns: whether it is there, its caption, and how fast that came."""
        with refusals_shown():
            chosen, models = chosen_image(image, address), (models or [])[:MAX_MODELS]
            if not models:
                raise Refused("choose at least one model")
            columns: list[Update] = []
            for model in models:
                columns += [gr.update(visible=True), gr.update(value="", label=model), gr.update(value="…")]
            columns += [gr.update(visible=False), gr.skip(), gr.skip()] * (MAX_MODELS - len(models))
            yield columns
            shown_s = 0.0
            visitor = visitor_of(request)
            answers = [self._service.caption(chosen, {"model": model, "style": style}, visitor) for model in models]
            async with aclosing(side_by_side(answers)) as arriving:
                async for index, result in arriving:
                    if isinstance(result, Refused):
                        text, speed = str(result), "failed"
                    else:
                        text, speed = result.text, speed_text(result)
                    columns[3 * index + 1], columns[3 * index + 2] = gr.update(value=text), gr.update(value=speed)
                    if time.monotonic() - shown_s >= SHOW_EVERY_S:
                        shown_s = time.monotonic()
                        yield columns
            yield columns

"""One image's caption as it is written, with the prompt that was sent and how fast it came."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import gradio as gr

from serve_app.families.wish import ANY_LENGTH
from serve_app.playground.fields import Number, sampling_of, text_of, without_empty
from serve_app.playground.joycaption_space import length_of
from serve_app.playground.service import Service
from serve_app.playground.showing import (
    NO_SPEED,
    File,
    Update,
    address_input,
    chosen_image,
    image_input,
    paced,
    refusals_shown,
    speed_text,
    visitor_of,
)


class CaptionTab:
    def __init__(self, service: Service) -> None:
        self._service = service
        with gr.Row():
            with gr.Column():
                image, address = image_input("caption-image"), address_input()
                self.model = gr.Dropdown(label="Model", choices=[], allow_custom_value=True, elem_id="caption-model")
                with gr.Row():
                    style = gr.Dropdown(label="Style", choices=["short"], value="short", allow_custom_value=True)
                    length = gr.Dropdown(
                        label="Length (a word, or a number of words)", choices=[ANY_LENGTH], value=ANY_LENGTH,
                        allow_custom_value=True, visible=False,
                    )  # fmt: skip
                options = gr.Dropdown(label="Also", choices=[], multiselect=True, visible=False)
                name = gr.Textbox(label="Name of the person or character", visible=False, max_lines=1)
                with gr.Accordion("More", open=False):
                    prompt = gr.Textbox(label="Your own prompt, instead of style and length")
                    with gr.Row():
                        max_tokens = gr.Textbox(label="Tokens at most", max_lines=1)
                        temperature = gr.Textbox(label="Temperature", placeholder="0", max_lines=1)
                        seed = gr.Textbox(label="Seed", max_lines=1)
                with gr.Row():
                    ask = gr.Button("Caption", variant="primary", elem_id="caption-button")
                    stop = gr.Button("Stop")
            with gr.Column():
                caption = gr.Textbox(label="Caption", lines=8, elem_id="caption", buttons=["copy"])
                sent = gr.Textbox(label="The prompt that was sent", lines=2, elem_id="caption-prompt")
                speed = gr.Markdown(NO_SPEED, elem_id="caption-speed")
        settings = [style, length, options, name]
        self.model.change(
            self.choices, self.model, settings, api_visibility="private", show_progress="hidden", preprocess=False
        )
        asking = ask.click(
            self.caption,
            [image, address, self.model, *settings, prompt, max_tokens, temperature, seed],
            [caption, sent, speed],
            api_name="caption",
            preprocess=False,
        )
        stop.click(None, None, None, cancels=[asking])

    async def choices(self, model: str | None, request: gr.Request) -> list[Update]:
        """What the inputs for style, length, options and name offer for this model."""
        with refusals_shown():
            styles = await self._service.styles(text_of(model) or None, visitor_of(request))
        names = [(style["label"], style["name"]) for style in styles["styles"]]
        options = [(option["text"], option["name"]) for option in styles["options"]]
        return [
            gr.update(choices=names, value=names[0][1]),
            gr.update(choices=styles["lengths"] or [ANY_LENGTH], value=ANY_LENGTH, visible=bool(styles["lengths"])),
            gr.update(choices=options, value=[], visible=bool(options)),
            gr.update(value="", visible=bool(options)),
        ]

    async def caption(
        self,
        image: File | None,
        address: str | None,
        model: str | None,
        style: str | None,
        length: str | None,
        options: list[str] | None,
        name: str | None,
        prompt: str | None,
        max_tokens: Number,
        temperature: Number,
        seed: Number,
        request: gr.Request,
    ) -> AsyncGenerator[tuple[str, str, str]]:
        """An image's caption, the prompt that was sent, and how fast it came."""
        with refusals_shown():
            fields = sampling_of(max_tokens=max_tokens, temperature=temperature, seed=seed) | {"model": model}
            if text_of(prompt):
                fields["prompt"] = prompt
            else:
                fields |= {"style": style, "length": length_of(text_of(length))}
                fields |= {"options": options or None, "name": text_of(name) or None}
            chosen = chosen_image(image, address)
            answers = self._service.caption(chosen, without_empty(fields), visitor_of(request))
            async with aclosing(paced(answers)) as paced_answers:
                async for answer in paced_answers:
                    yield answer.text, answer.prompt or "", speed_text(answer)

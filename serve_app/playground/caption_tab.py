"""One image's caption as it is written, with the prompt that was sent and how fast it came."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import gradio as gr

from serve_app.playground.caption_inputs import CaptionInputs, fields_of
from serve_app.playground.fields import Number, sampling_of, text_of, without_empty
from serve_app.playground.service import Service
from serve_app.playground.showing import (
    NO_SPEED,
    File,
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
                inputs = CaptionInputs(service, "caption")
                self.model = inputs.model
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
        asking = ask.click(
            self.caption,
            [image, address, *inputs.components, prompt, max_tokens, temperature, seed],
            [caption, sent, speed],
            api_name="caption",
            preprocess=False,
        )
        stop.click(None, None, None, cancels=[asking])

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
            own_prompt = {"model": model, "prompt": prompt} if text_of(prompt) else None
            fields = own_prompt or fields_of(model, style, length, options, name)
            fields |= sampling_of(max_tokens=max_tokens, temperature=temperature, seed=seed)
            chosen = chosen_image(image, address)
            answers = self._service.caption(chosen, without_empty(fields), visitor_of(request))
            async with aclosing(paced(answers)) as paced_answers:
                async for answer in paced_answers:
                    yield answer.text, answer.prompt or "", speed_text(answer)

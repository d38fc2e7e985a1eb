"""What clients of JoyCaption's Space call, `/stream_chat`, with its names in its order. The page doesn't show it."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

import gradio as gr

from serve_app.playground import joycaption_space
from serve_app.playground.fields import text_of
from serve_app.playground.service import Service
from serve_app.playground.showing import File, chosen_image, paced, refusals_shown, visitor_of


class JoyCaptionCall:
    def __init__(self, service: Service) -> None:
        self._service = service
        with gr.Row(visible=False):
            inputs = [
                gr.Image(label="Input Image", type="filepath"),
                gr.Dropdown(label="Caption Type", choices=list(joycaption_space.TYPES), value=joycaption_space.TYPE,
                            allow_custom_value=True),
                gr.Dropdown(label="Caption Length", choices=list(joycaption_space.SPACE_LENGTHS),
                            value=joycaption_space.LENGTH, allow_custom_value=True),
                gr.Dropdown(label="Extra Options", choices=[], multiselect=True, allow_custom_value=True, value=[]),
                gr.Textbox(label="Person/Character Name (if applicable)", value=""),
                gr.Textbox(label="Custom Prompt (optional, will override all other settings)", value=""),
            ]  # fmt: skip
            outputs = [gr.Textbox(label="Prompt that was used"), gr.Textbox(label="Caption")]
            button = gr.Button("Caption")
        button.click(self.stream_chat, inputs, outputs, api_name="stream_chat", preprocess=False)

    async def stream_chat(
        self,
        input_image: File | None,
        caption_type: str,
        caption_length: str | int,
        extra_options: list[str] | None,
        name_input: str | None,
        custom_prompt: str | None,
        request: gr.Request,
    ) -> AsyncGenerator[tuple[str, str]]:
        """The prompt that was used and the caption, by the default caption model."""
        visitor = visitor_of(request)
        with refusals_shown():
            chosen, styles = chosen_image(input_image, None), await self._service.styles(None, visitor)
            fields = joycaption_space.fields_of(
                styles, text_of(caption_type), str(caption_length), extra_options or [], text_of(name_input),
                text_of(custom_prompt),
            )  # fmt: skip
            answers = self._service.caption(chosen, fields | {"model": styles["model"]}, visitor)
            async with aclosing(paced(answers)) as paced_answers:
                async for answer in paced_answers:
                    yield answer.prompt or "", answer.text

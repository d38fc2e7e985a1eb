"""The inputs that say how an image is captioned: the model, and what that model understands of styles and lengths."""

import gradio as gr

from serve_app.families.wish import ANY_LENGTH
from serve_app.playground.fields import Fields, text_of
from serve_app.playground.joycaption_space import length_of
from serve_app.playground.service import Service
from serve_app.playground.showing import Update, refusals_shown, visitor_of


class CaptionInputs:
    """Drawn where it is made. `components` are what an event takes, in the order of `fields_of`."""

    def __init__(self, service: Service, elem_id: str) -> None:
        self._service = service
        self.model = gr.Dropdown(label="Model", choices=[], allow_custom_value=True, elem_id=f"{elem_id}-model")
        with gr.Row():
            style = gr.Dropdown(
                label="Style", choices=["short"], value="short", allow_custom_value=True, elem_id=f"{elem_id}-style"
            )
            length = gr.Dropdown(
                label="Length (a word, or a number of words)", choices=[ANY_LENGTH], value=ANY_LENGTH,
                allow_custom_value=True, visible=False,
            )  # fmt: skip
        options = gr.Dropdown(label="Also", choices=[], multiselect=True, visible=False)
        name = gr.Textbox(label="Name of the person or character", visible=False, max_lines=1)
        settings = [style, length, options, name]
        self.components = [self.model, *settings]
        self.model.change(
            self._choices, self.model, settings, api_visibility="private", show_progress="hidden", preprocess=False
        )

    async def _choices(self, model: str | None, request: gr.Request) -> list[Update]:
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


def fields_of(
    model: str | None, style: str | None, length: str | None, options: list[str] | None, name: str | None
) -> Fields:
    """The request's fields, None where nothing is said. Raises `Refused` for what no field can be."""
    return {
        "model": model,
        "style": style,
        "length": length_of(text_of(length)),
        "options": options or None,
        "name": text_of(name) or None,
    }

"""A conversation with images. The session keeps its turns, not the browser, which could change them."""

import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr

from serve_app.playground.fields import Number, sampling_of, text_of, without_empty
from serve_app.playground.guarded_blocks import image_of
from serve_app.playground.service import Refused, Service
from serve_app.playground.showing import NO_SPEED, File, Update, paced, refusals_shown, speed_text, visitor_of

Turn = dict[str, Any]  # its `role`, `text` and `files`
Bubble = dict[str, Any]  # as Gradio's Chatbot shows a turn's parts


class ChatTab:
    def __init__(self, service: Service) -> None:
        self._service = service
        with gr.Row():
            self.model = gr.Dropdown(label="Model", choices=[], allow_custom_value=True, scale=2)
            max_tokens = gr.Textbox(label="Tokens at most", max_lines=1)
            temperature = gr.Textbox(label="Temperature", placeholder="the model's own", max_lines=1)
        system = gr.Textbox(label="System prompt", max_lines=3)
        turns = gr.State([])
        shown = gr.Chatbot(label="Conversation", height=420, elem_id="chat")
        message = gr.MultimodalTextbox(
            label="Message", placeholder="A message; images too", file_count="multiple", file_types=["image"],
            sources=["upload"], elem_id="chat-message",
        )  # fmt: skip
        speed = gr.Markdown(NO_SPEED, elem_id="chat-speed")
        with gr.Row():
            stop, anew = gr.Button("Stop"), gr.Button("New conversation")
        asking = message.submit(
            self.chat,
            [message, turns, self.model, system, max_tokens, temperature],
            [turns, shown, speed, message],
            api_name="chat",
            preprocess=False,
        )
        stop.click(None, None, None, cancels=[asking])
        anew.click(
            lambda: ([], [], NO_SPEED), None, [turns, shown, speed], cancels=[asking], api_visibility="private"
        )

    async def chat(
        self,
        message: dict[str, Any] | None,
        turns: list[Turn],
        model: str | None,
        system: str | None,
        max_tokens: Number,
        temperature: Number,
        request: gr.Request,
    ) -> AsyncGenerator[tuple[list[Turn], list[Bubble], str, Update]]:
        """The answer to a message, which may bring images, after the turns before it.

        A turn without an answer isn't kept: its message stands in the field again.
        """
        with refusals_shown():
            text, files = text_of((message or {}).get("text")), list((message or {}).get("files") or [])
            if not text and not files:
                raise Refused("there is no message: write one")
            with_question = [*turns, {"role": "user", "text": text, "files": files}]
            messages = [_openai_message(turn) for turn in with_question]
            if text_of(system):
                messages.insert(0, {"role": "system", "content": system})
            fields = without_empty({"model": model} | sampling_of(max_tokens=max_tokens, temperature=temperature))
            yield turns, _bubbles(with_question), "…", gr.update(value=None)
            answers = self._service.chat(messages, fields, visitor_of(request))
            try:
                async with aclosing(paced(answers)) as paced_answers:
                    async for answer in paced_answers:
                        with_answer = [*with_question, {"role": "assistant", "text": answer.text, "files": []}]
                        yield with_answer, _bubbles(with_answer), speed_text(answer), gr.skip()
            except Refused:
                again = {"text": text, "files": [file["path"] for file in files]}
                yield turns, _bubbles(turns), "", gr.update(value=again)
                raise


def _openai_message(turn: Turn) -> dict[str, Any]:
    if not turn["files"]:
        return {"role": turn["role"], "content": turn["text"]}
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _data_uri(f)}} for f in turn["files"]]
    if turn["text"]:
        parts.append({"type": "text", "text": turn["text"]})
    return {"role": turn["role"], "content": parts}


def _data_uri(file: File) -> str:
    image = image_of(file)
    assert isinstance(image, bytes), "addresses are refused in messages"
    # The service looks at the bytes, whatever type an address names.
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def _bubbles(turns: list[Turn]) -> list[Bubble]:
    bubbles: list[Bubble] = []
    for turn in turns:
        bubbles += [{"role": turn["role"], "content": {"path": file["path"]}} for file in turn["files"]]
        if turn["text"]:
            bubbles.append({"role": turn["role"], "content": turn["text"]})
    return bubbles

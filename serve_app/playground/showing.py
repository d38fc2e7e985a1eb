"""What the page's tabs share: the input for an image, how answers and refusals are shown, and whose call it is."""

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import gradio as gr

from serve_app.playground.fields import text_of
from serve_app.playground.guarded_blocks import image_of
from serve_app.playground.service import Answer, Refused, Visitor

SHOW_EVERY_S = 0.05
NO_SPEED = "*Nothing has been asked yet.*"
Update = dict[str, Any]  # of a component, as `gr.update` makes it
File = dict[str, Any]  # as Gradio describes one: its `path` here, or the `url` of one that is elsewhere


def image_input(elem_id: str) -> gr.Image:
    return gr.Image(label="Image", type="filepath", sources=["upload", "clipboard"], height=240, elem_id=elem_id)


def address_input() -> gr.Textbox:
    return gr.Textbox(label="… or an image's address", placeholder="https://…", max_lines=1)


def chosen_image(image: File | None, address: str | None) -> bytes | str:
    """What is sent to the service. Raises `Refused` where there is neither."""
    if typed := text_of(address):
        return typed
    if image is None:
        raise Refused("there is no image: drop one, or paste its address")
    return image_of(image)


def speed_text(answer: Answer) -> str:
    """How fast an answer came, once it is whole."""
    if answer.speed is None:
        return "…" if answer.finish_reason is None else ""
    text = f"{answer.speed.num_tokens} tokens · first after **{1000 * answer.speed.first_token_s:.0f} ms**"
    if answer.speed.tokens_per_s is not None:
        text += f" · **{answer.speed.tokens_per_s:.0f} tokens/s**"
    return text + (" · cut at the most tokens allowed" if answer.finish_reason == "length" else "")


async def paced(answers: AsyncGenerator[Answer]) -> AsyncGenerator[Answer]:
    """The growing answer as often as a page can show it, and its end."""
    shown_s, unshown = 0.0, None
    async with aclosing(answers):
        async for answer in answers:
            unshown = answer
            if time.monotonic() - shown_s >= SHOW_EVERY_S:
                shown_s, unshown = time.monotonic(), None
                yield answer
    if unshown is not None:
        yield unshown


@contextmanager
def refusals_shown() -> Iterator[None]:
    """What is refused inside is said to the visitor."""
    try:
        yield
    except Refused as refused:
        raise gr.Error(str(refused), print_exception=False) from refused


def visitor_of(request: gr.Request) -> Visitor:
    authorization: str | None = request.headers.get("authorization")
    return authorization

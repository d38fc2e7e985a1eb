"""The page: captions of one picture, a chat with pictures, several models side by side, JoyCaption's Space's call.

What a visitor does becomes a call of `Service`; what that yields becomes what the visitor sees.
"""

import base64
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, TypeVar

import gradio as gr

from serve_app.playground import joycaption_space
from serve_app.playground.guarded_blocks import GuardedBlocks, picture_of
from serve_app.playground.service import Model, Refused, Said, Service, Visitor, side_by_side

MAX_COMPARED = 4
_SHOW_EVERY_S = 0.05
_DELETE_EVERY_S, _DELETE_AFTER_S = 300, 3600  # uploaded pictures
_ANY_LENGTH = "any"
_NO_SPEED = "*Nothing has been asked yet.*"
Update = dict[str, Any]
Fields = dict[str, Any]  # of a request, None where nothing is said
File = dict[str, Any]  # as Gradio tells of one: its `path` here, or the `url` of one that is elsewhere
Answer = TypeVar("Answer")


def build_page(service: Service, title: str, max_waiting: int) -> gr.Blocks:
    """The page over a service. `max_waiting`: visitors' requests that may wait here before more are refused."""
    with GuardedBlocks(title=title, analytics_enabled=False, delete_cache=(_DELETE_EVERY_S, _DELETE_AFTER_S)) as page:
        gr.Markdown(f"# {title}")
        tabs = _Tabs(service)
        page.load(tabs.models, None, tabs.model_inputs, api_visibility="private")
    page.queue(default_concurrency_limit=None, max_size=max_waiting, api_open=False)
    return page


class _Tabs:
    """What stands on the page, and what happens there."""

    def __init__(self, service: Service) -> None:
        self._service = service
        with gr.Tab("Caption"):
            caption_model = self._caption_tab()
        with gr.Tab("Chat"):
            chat_model = self._chat_tab()
        with gr.Tab("Side by side"):
            compared = self._side_by_side_tab()
        self._joycaption_call()
        self.model_inputs = [caption_model, chat_model, compared]

    async def models(self, request: gr.Request) -> list[Update]:
        """What the inputs of `model_inputs` offer this visitor."""
        models = await _asked(self._service.models(_visitor(request)))
        captioners, chatters = _names(models, "caption"), _names(models, "chat")
        return [
            gr.update(choices=captioners, value=next(iter(captioners), None)),
            gr.update(choices=chatters, value=next(iter(chatters), None)),
            gr.update(choices=captioners, value=captioners[:MAX_COMPARED]),
        ]

    def _caption_tab(self) -> gr.Dropdown:
        with gr.Row():
            with gr.Column():
                picture = _picture_input("caption-picture")
                address = gr.Textbox(label="… or a picture's address", placeholder="https://…", max_lines=1)
                model = gr.Dropdown(label="Model", choices=[], allow_custom_value=True, elem_id="caption-model")
                with gr.Row():
                    style = gr.Dropdown(label="Style", choices=["short"], value="short", allow_custom_value=True)
                    length = gr.Dropdown(
                        label="Length (a word, or a number of words)", choices=[_ANY_LENGTH], value=_ANY_LENGTH,
                        allow_custom_value=True, visible=False,
                    )  # fmt: skip
                options = gr.Dropdown(label="Also", choices=[], multiselect=True, visible=False)
                name = gr.Textbox(label="Name of the person or character", visible=False, max_lines=1)
                with gr.Accordion("More", open=False):
                    prompt = gr.Textbox(label="Your own prompt, instead of style and length")
                    max_tokens = gr.Number(label="Tokens at most", precision=0, minimum=1, value=None)
                    temperature = gr.Slider(label="Temperature", minimum=0, maximum=2, value=0, step=0.1)
                    seed = gr.Number(label="Seed", precision=0, value=None)
                with gr.Row():
                    ask = gr.Button("Caption", variant="primary", elem_id="caption-button")
                    stop = gr.Button("Stop")
            with gr.Column():
                caption = gr.Textbox(label="Caption", lines=8, elem_id="caption", buttons=["copy"])
                sent = gr.Textbox(label="The prompt that was sent", lines=2, elem_id="caption-prompt")
                speed = gr.Markdown(_NO_SPEED, elem_id="caption-speed")
        model.change(
            self.understood, model, [style, length, options, name], api_visibility="private", show_progress="hidden"
        )
        asking = ask.click(
            self.caption,
            [picture, address, model, style, length, options, name, prompt, max_tokens, temperature, seed],
            [caption, sent, speed],
            api_name="caption",
            preprocess=False,
        )
        stop.click(None, None, None, cancels=[asking])
        return model

    async def understood(self, model: str | None, request: gr.Request) -> list[Update]:
        """What the inputs for style, length, options and name offer for this model."""
        styles = await _asked(self._service.styles(model, _visitor(request)))
        names = [(style["label"], style["name"]) for style in styles["styles"]]
        options = [(option["text"], option["name"]) for option in styles["options"]]
        return [
            gr.update(choices=names, value=names[0][1]),
            gr.update(choices=styles["lengths"] or [_ANY_LENGTH], value=_ANY_LENGTH, visible=bool(styles["lengths"])),
            gr.update(choices=options, value=[], visible=bool(options)),
            gr.update(value="", visible=bool(options)),
        ]

    async def caption(
        self,
        picture: File | None,
        address: str | None,
        model: str | None,
        style: str | None,
        length: str | None,
        options: list[str] | None,
        name: str | None,
        prompt: str | None,
        max_tokens: int | None,
        temperature: float | None,
        seed: int | None,
        request: gr.Request,
    ) -> AsyncGenerator[tuple[str, str, str]]:
        """A picture's caption, the prompt that was sent, and how fast it came."""
        fields = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        if _text(prompt):
            fields["prompt"] = prompt
        else:
            fields |= {"style": style, "length": joycaption_space.length_of(_text(length))}
            fields |= {"options": options or None, "name": _text(name) or None}
        async for said in self._captioned(picture, address, model, fields, request):
            yield said.text, said.prompt or "", _measured(said)

    async def _captioned(
        self, picture: File | None, address: str | None, model: str | None, fields: Fields, request: gr.Request
    ) -> AsyncGenerator[Said]:
        chosen = _chosen_picture(picture, address)
        fields = _given(fields | {"model": model})
        async with aclosing(_shown(self._service.caption(chosen, fields, _visitor(request)))) as answer:
            async for said in answer:
                yield said

    def _chat_tab(self) -> gr.Dropdown:
        with gr.Row():
            model = gr.Dropdown(label="Model", choices=[], allow_custom_value=True, scale=2)
            max_tokens = gr.Number(label="Tokens at most", precision=0, minimum=1, value=None)
            temperature = gr.Number(label="Temperature", minimum=0, maximum=2, value=None)
        system = gr.Textbox(label="System prompt", max_lines=3)
        turns = gr.State([])
        shown = gr.Chatbot(label="Conversation", height=420, elem_id="chat")
        message = gr.MultimodalTextbox(
            label="Message", placeholder="A message; pictures too", file_count="multiple", file_types=["image"],
            sources=["upload"], elem_id="chat-message",
        )  # fmt: skip
        speed = gr.Markdown(_NO_SPEED, elem_id="chat-speed")
        with gr.Row():
            stop, anew = gr.Button("Stop"), gr.Button("New conversation")
        asking = message.submit(
            self.chat,
            [message, turns, model, system, max_tokens, temperature],
            [turns, shown, speed, message],
            api_name="chat",
            preprocess=False,
        )
        stop.click(None, None, None, cancels=[asking])
        anew.click(
            lambda: ([], [], _NO_SPEED), None, [turns, shown, speed], cancels=[asking], api_visibility="private"
        )
        return model

    async def chat(
        self,
        message: dict[str, Any] | None,
        turns: list[dict[str, Any]],
        model: str | None,
        system: str | None,
        max_tokens: int | None,
        temperature: float | None,
        request: gr.Request,
    ) -> AsyncGenerator[tuple[list[dict[str, Any]], list[dict[str, Any]], str, Update]]:
        """The answer to a message, which may bring pictures, after the turns before it.

        A turn is `{"role", "text", "files"}`. One that has no answer yet is kept only with it.
        """
        message = message or {}
        text, files = _text(message.get("text")), list(message.get("files") or [])
        if not text and not files:
            raise gr.Error("there is no message: write one", print_exception=False)
        asked = [*turns, {"role": "user", "text": text, "files": files}]
        messages = [_openai_message(turn) for turn in asked]
        if _text(system):
            messages.insert(0, {"role": "system", "content": system})
        fields = _given({"model": model, "max_tokens": max_tokens, "temperature": temperature})
        yield turns, _bubbles(asked), "…", gr.update(value=None)
        try:
            async with aclosing(_shown(self._service.chat(messages, fields, _visitor(request)))) as answer:
                async for said in answer:
                    answered = [*asked, {"role": "assistant", "text": said.text, "files": []}]
                    yield answered, _bubbles(answered), _measured(said), gr.skip()
        except gr.Error:
            yield (
                turns,
                _bubbles(turns),
                "",
                gr.update(value={"text": text, "files": [file["path"] for file in files]}),
            )
            raise

    def _side_by_side_tab(self) -> gr.Dropdown:
        with gr.Row():
            with gr.Column():
                picture = _picture_input("compare-picture")
                address = gr.Textbox(label="… or a picture's address", placeholder="https://…", max_lines=1)
            with gr.Column():
                models = gr.Dropdown(
                    label=f"Models ({MAX_COMPARED} at most)", choices=[], multiselect=True, max_choices=MAX_COMPARED
                )
                style = gr.Radio(label="Style", choices=["short", "detailed", "tags"], value="short")
                ask = gr.Button("Caption with each", variant="primary", elem_id="compare-button")
        columns: list[Any] = []
        with gr.Row():
            for number in range(MAX_COMPARED):
                with gr.Column(visible=False, min_width=200) as column:
                    columns += [
                        column,
                        gr.Textbox(label="Caption", lines=6, elem_id=f"compare-{number}"),
                        gr.Markdown(elem_id=f"compare-speed-{number}"),
                    ]
        ask.click(
            self.compare, [picture, address, models, style], columns, api_visibility="private", preprocess=False
        )
        return models

    async def compare(
        self, picture: File | None, address: str | None, models: list[str] | None, style: str, request: gr.Request
    ) -> AsyncGenerator[list[Update]]:
        """For each of `MAX_COMPARED` columns: whether it is there, its caption, and how fast that came."""
        chosen, visitor = _chosen_picture(picture, address), _visitor(request)
        models = (models or [])[:MAX_COMPARED]
        if not models:
            raise gr.Error("choose at least one model", print_exception=False)
        answers = [self._service.caption(chosen, {"model": model, "style": style}, visitor) for model in models]
        columns: list[Update] = []
        for model in models:
            columns += [gr.update(visible=True), gr.update(value="", label=model), gr.update(value="…")]
        columns += [gr.update(visible=False), gr.update(value=""), gr.update(value="")] * (MAX_COMPARED - len(models))
        yield columns
        shown_s = 0.0
        async with aclosing(side_by_side(answers)) as arriving:
            async for index, said in arriving:
                text, told = (f"{said}", "failed") if isinstance(said, Refused) else (said.text, _measured(said))
                columns[3 * index + 1], columns[3 * index + 2] = gr.update(value=text), gr.update(value=told)
                if time.monotonic() - shown_s >= _SHOW_EVERY_S:
                    shown_s = time.monotonic()
                    yield columns
        yield columns

    def _joycaption_call(self) -> None:
        """What clients of JoyCaption's Space call, with its names and its order."""
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
        styles = await _asked(self._service.styles(None, _visitor(request)))
        fields = joycaption_space.fields_of(
            styles,
            _text(caption_type),
            str(caption_length),
            extra_options or [],
            _text(name_input),
            _text(custom_prompt),
        )
        async for said in self._captioned(input_image, None, styles["model"], fields, request):
            yield said.prompt or "", said.text


def _picture_input(elem_id: str) -> gr.Image:
    return gr.Image(label="Picture", type="filepath", sources=["upload", "clipboard"], height=240, elem_id=elem_id)


def _names(models: Sequence[Model], task: str) -> list[str]:
    """Those that do the task, or may yet turn out to."""
    return [model.name for model in models if task in model.tasks or not model.tasks]


def _text(value: Any) -> str:
    """What a field holds, empty ones included, which browsers send as nothing."""
    if value is not None and not isinstance(value, str):
        raise gr.Error("a text is wanted where something else was sent", print_exception=False)
    return (value or "").strip()


def _given(fields: Fields) -> Fields:
    """What was left empty is the service's to decide."""
    return {name: value for name, value in fields.items() if value is not None}


def _chosen_picture(picture: File | None, address: str | None) -> bytes | str:
    if _text(address):
        return _text(address)
    if picture is None:
        raise gr.Error("there is no picture: drop one, or paste its address", print_exception=False)
    return picture_of(picture)


def _openai_message(turn: dict[str, Any]) -> dict[str, Any]:
    if not turn["files"]:
        return {"role": turn["role"], "content": turn["text"]}
    addresses = [_as_address(picture_of(file)) for file in turn["files"]]
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    return {
        "role": turn["role"],
        "content": parts + ([{"type": "text", "text": turn["text"]}] if turn["text"] else []),
    }


def _as_address(picture: bytes | str) -> str:
    # The service looks at the bytes, whatever type an address names.
    return picture if isinstance(picture, str) else f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def _bubbles(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns as Gradio's Chatbot shows them."""
    bubbles: list[dict[str, Any]] = []
    for turn in turns:
        for file in turn["files"]:
            bubbles.append({"role": turn["role"], "content": {"path": file["path"]}})
        if turn["text"]:
            bubbles.append({"role": turn["role"], "content": turn["text"]})
    return bubbles


def _measured(said: Said) -> str:
    if said.speed is None:
        return "…" if said.finish_reason is None else ""
    told = f"{said.speed.num_tokens} tokens · first after **{1000 * said.speed.first_token_s:.0f} ms**"
    if said.speed.tokens_per_s is not None:
        told += f" · **{said.speed.tokens_per_s:.0f} tokens/s**"
    return told + (" · cut at the most tokens allowed" if said.finish_reason == "length" else "")


async def _shown(answer: AsyncGenerator[Said]) -> AsyncGenerator[Said]:
    """The answer at the pace at which a page can show it, its end included. What is refused becomes `gr.Error`."""
    shown_s, held = 0.0, None
    with _refusals_shown():
        async with aclosing(answer):
            async for said in answer:
                held = said
                if time.monotonic() - shown_s >= _SHOW_EVERY_S:
                    shown_s, held = time.monotonic(), None
                    yield said
    if held is not None:
        yield held


async def _asked(question: Awaitable[Answer]) -> Answer:
    with _refusals_shown():
        return await question


@contextmanager
def _refusals_shown() -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        raise gr.Error(str(refused), print_exception=False) from refused


def _visitor(request: gr.Request) -> Visitor:
    authorization: str | None = request.headers.get("authorization")
    return authorization

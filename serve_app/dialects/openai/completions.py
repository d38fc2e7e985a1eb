"""OpenAI's older completions, which continue a text instead of answering in a chat."""

from serve_app.dialects.markdown_images import UNTITLED, require_short_texts, split_images, with_images
from serve_app.dialects.openai.completion_answer import CompletionEvents, choices_json, completion_frame, usage_event
from serve_app.dialects.openai.completion_body import CompletionBody
from serve_app.dialects.usage import Usage
from serve_app.exchange.all_at_once import all_at_once
from serve_app.exchange.connection import DONE_EVENT
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.off_loop import off_loop
from serve_app.images.gate import ImageUrl
from serve_app.messages import Chunk, GenerationRequest, Message, RawPrompt, StreamTotal, Write
from serve_app.models.entry import ModelEntry

Prompt = tuple[Message, RawPrompt]


async def create_completion(exchange: Exchange, model_name: str | None = None) -> None:
    """What follows one prompt or several, streamed or not.

    `model_name` takes precedence over the body's.
    """
    body = await exchange.read_json(CompletionBody)
    model = exchange.choose(model_name or body.model, "chat")
    await exchange.count_answers(len(body.each_prompt) * body.num_answers)
    task = _CompletionTask(exchange, model, body, await _prompts(exchange, model, body))
    if body.stream:
        await exchange.send_events(task.stream)
    else:
        await task.answer()


async def _prompts(exchange: Exchange, model: ModelEntry, body: CompletionBody) -> list[Prompt]:
    """Each prompt as an engine takes it: token ids, or text with the images that TGI's clients write into it."""
    texts = [prompt if isinstance(prompt, str) else "" for prompt in body.each_prompt]
    pieces: list[list[str | ImageUrl]]
    if model.may_take_images:
        pieces = [await off_loop(len(text), split_images, text, "prompt", UNTITLED) for text in texts]
    else:
        pieces = [[text] if text else [] for text in texts]
    require_short_texts((piece for of_prompt in pieces for piece in of_prompt), "prompt")
    sources = [piece for of_prompt in pieces for piece in of_prompt if isinstance(piece, ImageUrl)]
    images = iter(await exchange.load_images(model, sources, ["prompt"] * len(sources), "prompt"))
    return [
        (Message("user", with_images(of_prompt, images)), RawPrompt())
        if isinstance(prompt, str)
        else (Message("user", ()), RawPrompt(tokens=tuple(prompt)))
        for prompt, of_prompt in zip(body.each_prompt, pieces, strict=True)
    ]


class _CompletionTask:
    """The prompts of one request, all at once; the first that fails ends the others."""

    def __init__(self, exchange: Exchange, model: ModelEntry, body: CompletionBody, prompts: list[Prompt]) -> None:
        self._exchange = exchange
        self._model = model
        self._body = body
        self._prompts = prompts
        self._frame = completion_frame(exchange, model.name)

    async def answer(self) -> None:
        async def answer(number: int) -> tuple[Chunk, ...]:
            return await self._exchange.answer(self._request(number), self._names(number))

        answers = await all_at_once(answer, len(self._prompts))
        choices = [
            choice
            for number, chunks in enumerate(answers)
            for choice in choices_json(chunks, self._first_index(number), self._body.echoed(number))
        ]
        usage = Usage.total(Usage.of(chunks) for chunks in answers)
        await self._exchange.send_json(self._frame | {"choices": choices, "usage": usage.as_json()})

    async def stream(self, write: Write) -> None:
        """Every prompt's events as they come, the usage where it was asked for, and `[DONE]`."""

        async def stream(number: int) -> StreamTotal:
            encoder = CompletionEvents(
                self._frame, self._first_index(number), self._body.echoed(number), self._body.running_usage()
            )
            return await self._exchange.stream(self._request(number), encoder, write, self._names(number))

        totals = await all_at_once(stream, len(self._prompts))
        if self._body.running_usage().is_sent:
            usage = Usage.total(
                Usage(total.num_prompt_tokens, total.num_tokens, total.num_cached_tokens) for total in totals
            )
            write(usage_event(self._frame, usage))
        write(DONE_EVENT)

    def _request(self, number: int) -> GenerationRequest:
        message, raw = self._prompts[number]
        part = f"-{number}" if len(self._prompts) > 1 else ""
        return self._exchange.generation(self._model, (message,), self._body.sampling(), part=part, raw=raw)

    def _names(self, number: int) -> dict[str, str]:
        """This prompt's name in the client's spelling, and those of other fields."""
        prompt = {"prompt": f"prompt[{number}]"} if len(self._prompts) > 1 else {}
        return self._body.field_names | prompt

    def _first_index(self, number: int) -> int:
        return number * self._body.num_answers

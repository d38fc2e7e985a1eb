"""OpenAI's older dialect: `POST /v1/completions`, which goes on with a text instead of answering in a chat."""

from serve_app.dialects.all_at_once import all_at_once
from serve_app.dialects.markdown_images import UNTITLED, require_short_texts, split_images, with_images
from serve_app.dialects.openai.completion_answer import CompletionEvents, choices_json, completion_frame, usage_event
from serve_app.dialects.openai.completion_body import CompletionBody
from serve_app.dialects.usage import Usage
from serve_app.exchange.counted import count_answers
from serve_app.exchange.exchange import DONE_EVENT, Exchange
from serve_app.exchange.field_names import in_clients_words
from serve_app.exchange.images import load_images
from serve_app.exchange.json_request import read_json
from serve_app.exchange.lane import Lane
from serve_app.exchange.off_loop import off_loop
from serve_app.images.gate import ImageUrl
from serve_app.messages import Chunk, GenerationRequest, Message, RawPrompt, StreamTotal, Write
from serve_app.models.entry import ModelEntry

Prompt = tuple[Message, RawPrompt]


async def create_completion(exchange: Exchange, lane: Lane, model_name: str | None = None) -> None:
    """What follows one prompt or several, streamed or not.

    `model_name` stands above the body's.
    """
    body = await read_json(exchange, CompletionBody)
    model = lane.choose(model_name or body.model, "chat", exchange.key)
    exchange.set_model(model.name)
    await count_answers(exchange, lane, len(body.prompt) * (body.n or 1))
    task = CompletionTask(exchange, lane, model.name, body, await _prompts(exchange, lane, model, body))
    if body.stream:
        await exchange.send_events(task.stream)
    else:
        await task.answer()


async def _prompts(exchange: Exchange, lane: Lane, model: ModelEntry, body: CompletionBody) -> list[Prompt]:
    """Each prompt as an engine wants it, with the images that TGI's clients write into theirs."""
    prompts = body.prompts()
    if not model.may_take_images:
        require_short_texts((text for text in body.each_prompt if isinstance(text, str)), "prompt")
        return prompts
    pieces = [
        await off_loop(len(text), split_images, text, "prompt", UNTITLED) if isinstance(text, str) else []
        for text in body.each_prompt
    ]
    require_short_texts((piece for one in pieces for piece in one), "prompt")
    sources = [piece for one in pieces for piece in one if isinstance(piece, ImageUrl)]
    images = iter(await load_images(exchange, lane, model, sources, ["prompt"] * len(sources), "prompt"))
    return [
        (Message("user", with_images(one, images)), raw) if one else (message, raw)
        for one, (message, raw) in zip(pieces, prompts, strict=True)
    ]


class CompletionTask:
    """The prompts of one request, all at once; the first that fails ends the others."""

    def __init__(
        self, exchange: Exchange, lane: Lane, model: str, body: CompletionBody, prompts: list[Prompt]
    ) -> None:
        self._exchange = exchange
        self._lane = lane
        self._body = body
        self._prompts = prompts
        self._model = model
        self._frame = completion_frame(exchange, model)

    async def answer(self) -> None:
        async def one(number: int) -> tuple[Chunk, ...]:
            with in_clients_words(self._body.field_names | self._prompt_name(number)):
                chunks = await self._lane.answer(self._request(number), self._exchange.key)
            self._exchange.count_tokens(sum(chunk.num_tokens for chunk in chunks))
            return chunks

        answers = await all_at_once(one, len(self._prompts))
        choices = [
            choice
            for number, chunks in enumerate(answers)
            for choice in choices_json(chunks, self._first_index(number), self._body.echoed(number))
        ]
        usage = Usage.total(Usage.of(chunks) for chunks in answers)
        await self._exchange.send_json(self._frame | {"choices": choices, "usage": usage.as_json()})

    async def stream(self, write: Write) -> None:
        """Every prompt's events as they come, the usage where it was asked for, and `[DONE]`."""

        async def one(number: int) -> StreamTotal:
            encoder = CompletionEvents(
                self._frame, self._first_index(number), self._body.echoed(number), self._body.running_usage()
            )
            with in_clients_words(self._body.field_names | self._prompt_name(number)):
                total = await self._lane.stream(self._request(number), encoder, write, self._exchange.key)
            self._exchange.count_tokens(total.num_tokens)
            return total

        totals = await all_at_once(one, len(self._prompts))
        if self._body.running_usage().is_told:
            usage = Usage.total(
                Usage(total.num_prompt_tokens, total.num_tokens, total.num_cached_tokens) for total in totals
            )
            write(usage_event(self._frame, usage))
        write(DONE_EVENT)

    def _request(self, number: int) -> GenerationRequest:
        message, raw = self._prompts[number]
        return GenerationRequest(
            id=self._exchange.id if len(self._prompts) == 1 else f"{self._exchange.id}-{number}",
            model=self._model,
            messages=(message,),
            sampling=self._body.sampling(),
            timeout_s=self._exchange.remaining_s,
            raw=raw,
        )

    def _prompt_name(self, number: int) -> dict[str, str]:
        return {"prompt": f"prompt[{number}]"} if len(self._prompts) > 1 else {}

    def _first_index(self, number: int) -> int:
        return number * (self._body.n or 1)

"""`POST /v1/captions`: images in, captions out.

Each image is a generation of its own, all at once; a bad image has its own error and never shifts another's caption.
"""

import time
from collections.abc import Sequence
from typing import Any

from serve_app.dialects.captions.answer import Caption, CaptionEvents, CaptionPrompt, Failure, Outcome
from serve_app.dialects.captions.body import CaptionRequest, read_caption_request
from serve_app.dialects.captions.fields import CaptionFields
from serve_app.dialects.captions.guard import CaptionGuard
from serve_app.dialects.usage import Usage
from serve_app.errors import ClientTooSlow, InvalidRequest, ServeAppError, TooManyImages
from serve_app.exchange.all_at_once import all_at_once
from serve_app.exchange.connection import DONE_EVENT, event_bytes
from serve_app.exchange.exchange import Exchange
from serve_app.families import CaptionFamily, family_named
from serve_app.families.wish import Words, worded
from serve_app.messages import Chunk, GenerationRequest, Message, RgbImage, Sampling, Text, Write
from serve_app.models.entry import ModelEntry


async def create_captions(exchange: Exchange) -> None:
    """A caption for each image, from JSON or a multipart form, streamed or not."""
    max_images = exchange.lane.config.max_images_per_request
    captions = await read_caption_request(exchange, max_images)
    fields, num_images = captions.fields, len(captions.sources)
    model = exchange.choose(fields.model, "caption")
    if num_images > max_images:
        raise TooManyImages(
            f"images: {num_images} images, and a request takes {max_images}: send several requests", "images"
        )
    model.require_images(captions.params[0])
    task = CaptionTask(exchange, model, captions)
    await exchange.count_answers(num_images * fields.num_answers)
    await exchange.count_images(num_images)
    if fields.stream:
        await exchange.send_events(task.stream)
    else:
        await exchange.send_json(_answer(exchange, model.name, await task.outcomes()))


class CaptionTask:
    """The images of one request, each captioned apart from the others, all at once.

    Raises `InvalidRequest` for wishes that the model's family can't grant.
    """

    def __init__(self, exchange: Exchange, model: ModelEntry, captions: CaptionRequest) -> None:
        self._exchange = exchange
        self._model = model
        self._captions = captions
        fields = captions.fields
        family = family_named(model.family or "generic")
        words = _words(family, fields)
        self._sampling = fields.sampling()
        self._prompt = _prompt(family, words, fields)
        self._guard = CaptionGuard(fields.guard, self._prompt, words) if fields.guard else None

    async def outcomes(self) -> list[Outcome]:
        """Every image's caption or failure, in order. Raises where no image has a caption."""

        async def caption_or_failure(index: int) -> Outcome:
            try:
                return await self._caption(index)
            except ServeAppError as error:
                return Failure(index, error)

        outcomes = await all_at_once(caption_or_failure, len(self._captions.sources))
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        if len(failures) == len(outcomes):
            raise _no_caption(failures)
        return outcomes

    async def _caption(self, index: int) -> Caption:
        begun_s = time.monotonic()
        image = await self._image(index)
        image_s = time.monotonic() - begun_s

        async def ask(attempt: int, sampling: Sampling) -> Chunk:
            if attempt:
                await self._exchange.count_retry()
            return (await self._answer(index, image, attempt, sampling))[0]

        if self._guard is None:
            chunks = await self._answer(index, image, 0, self._sampling)
            usage, report = Usage.of(chunks), None
        else:
            guarded = await self._guard.run(ask, self._sampling, lambda: self._exchange.remaining_s)
            for attempt in guarded.attempts:
                self._exchange.lane.metrics.caption_checked(self._model.name, attempt.findings)
            chunks = (guarded.chunks[guarded.chosen],)
            usage, report = Usage.total(Usage.of([chunk]) for chunk in guarded.chunks), guarded.report()
        return Caption(index, self._prompt, chunks, image_s, usage, time.monotonic() - begun_s, report)

    async def _answer(self, index: int, image: RgbImage, attempt: int, sampling: Sampling) -> tuple[Chunk, ...]:
        return await self._exchange.answer(self._request(index, image, attempt, sampling), self._names(index))

    async def stream(self, write: Write) -> None:
        """Every image's events as they come, and `[DONE]`. Raises where no image has a caption.

        Failures before the first caption has begun wait for it: until then the answer may still be an error.
        """
        early: list[Failure] = []
        has_begun = False

        def begin(data: bytes) -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                for failure in early:
                    write(event_bytes(failure.as_json()))
            write(data)

        async def caption(index: int) -> None:
            try:
                begun_s = time.monotonic()
                image = await self._image(index)
                encoder = CaptionEvents(index, self._prompt, time.monotonic() - begun_s)
                request = self._request(index, image, 0, self._sampling)
                await self._exchange.stream(request, encoder, begin, self._names(index))
            except ClientTooSlow:
                raise
            except ServeAppError as error:
                failure = Failure(index, error)
                if has_begun:
                    write(event_bytes(failure.as_json()))
                else:
                    early.append(failure)

        await all_at_once(caption, len(self._captions.sources))
        if not has_begun:
            raise _no_caption(sorted(early, key=lambda failure: failure.index))
        write(DONE_EVENT)

    async def _image(self, index: int) -> RgbImage:
        source, param = self._captions.sources[index], self._captions.params[index]
        return await self._exchange.load_image(self._model, source, param)

    def _request(self, index: int, image: RgbImage, attempt: int, sampling: Sampling) -> GenerationRequest:
        system = self._prompt.system
        user = Message("user", (image, Text(self._prompt.text)))
        messages = (user,) if system is None else (Message("system", (Text(system),)), user)
        part = f"-{index}-{attempt}" if attempt else f"-{index}"
        return self._exchange.generation(self._model, messages, sampling, part=part)

    def _names(self, index: int) -> dict[str, str]:
        return self._captions.fields.field_names(self._captions.params[index])


def _words(family: CaptionFamily, fields: CaptionFields) -> Words:
    """Raises `InvalidRequest`, also if the format is tags and the style lists none."""
    has_tags = any(style.lists_tags for style in family.styles)
    if fields.form == "tags" and not has_tags and fields.style is None and fields.prompt is None:
        raise InvalidRequest(
            f"format: models of the family '{family.name}' have no style of tags: ask with a prompt", "format"
        )
    words = worded(family, fields.wish())
    if fields.form == "tags" and words.lists_tags is False:
        raise InvalidRequest(f"format: the style '{fields.style}' lists no tags: leave out one of the two", "format")
    return words


def _prompt(family: CaptionFamily, words: Words, fields: CaptionFields) -> CaptionPrompt:
    reading = words.task.reading if words.task else "text"
    if family.grounding is not None and family.grounding in words.prompt:
        reading = "entities"
    return CaptionPrompt(words.prompt, words.system, reading, fields.form, family.repeats_prompt, fields.num_answers)


def _no_caption(failures: Sequence[Failure]) -> ServeAppError:
    """The first image's error; it says so where there were several images."""
    first = failures[0].error
    if len(failures) == 1:
        return first
    message = f"none of the {len(failures)} images could be captioned; the first error: {first.message}"
    return type(first)(message, first.param, first.retry_after_s)


def _answer(exchange: Exchange, model: str, outcomes: list[Outcome]) -> dict[str, Any]:
    usages = [outcome.usage for outcome in outcomes if isinstance(outcome, Caption)]
    return {
        "id": f"cap-{exchange.id}",
        "object": "list",
        "created": exchange.created_s,
        "model": model,
        "data": [outcome.as_json() for outcome in outcomes],
        "usage": Usage.total(usages).as_json(),
    }

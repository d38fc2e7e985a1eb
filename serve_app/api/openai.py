"""OpenAI's dialect: `/v1/chat/completions` and `/v1/models`."""

import asyncio
from collections.abc import Iterator

from serve_app.api.body import parse_json
from serve_app.api.chat_answer import ChatEvents, completion_json
from serve_app.api.chat_body import ChatBody, ImagePart, StreamOptions, TextPart
from serve_app.api.exchange import Exchange
from serve_app.api.lane import Lane, ModelEntry
from serve_app.errors import Forbidden, InvalidRequest, TooManyImages
from serve_app.images import ImageSource, source_from_text
from serve_app.messages import GenerationRequest, Message, Picture, Text, Write

_LONGEST_NAME = 256  # of what is looked up and told again


async def create_chat_completion(exchange: Exchange, lane: Lane) -> None:
    """`POST /v1/chat/completions`, streamed or not."""
    body = parse_json(await exchange.read_body(), ChatBody)
    model = lane.choose(body.model, "chat", exchange.key)
    exchange.set_model(model.name)
    image_params = _image_params(body)
    if image_params:
        model.require_pictures(image_params[0])
    if len(image_params) > lane.config.max_images_per_request:
        raise TooManyImages(
            f"messages: {len(image_params)} pictures, and a request takes {lane.config.max_images_per_request}: "
            "send fewer", "messages",
        )  # fmt: skip
    await lane.count_images(exchange.key, len(image_params))
    request = GenerationRequest(
        id=exchange.id,
        model=model.name,
        messages=await exchange.in_time(_load_messages(body, lane, model)),
        sampling=body.sampling(),
        timeout_s=exchange.remaining_s,
        tool_use=body.tool_use(),
    )
    if not body.stream:
        chunks = await lane.answer(request, exchange.key)
        exchange.count_tokens(sum(chunk.num_tokens for chunk in chunks))
        await exchange.send_json(completion_json(exchange, model.name, chunks))
        return
    options = body.stream_options or StreamOptions()
    encoder = ChatEvents(
        f"chatcmpl-{exchange.id}", exchange.created_s, model.name,
        options.include_usage, options.continuous_usage_stats,
    )  # fmt: skip

    async def produce(write: Write) -> None:
        exchange.count_tokens((await lane.stream(request, encoder, write, exchange.key)).num_tokens)

    await exchange.send_events(produce)


async def list_models(exchange: Exchange, lane: Lane) -> None:
    """`GET /v1/models`: OpenAI's list, each model with its state, tasks, engine and context length."""
    listed = {"object": "list", "data": [e.as_json() for e in lane.visible(exchange.key)]}
    refused = lane.catalog.refused_config
    await exchange.send_json(listed | ({"refused_config": refused} if refused else {}))


async def retrieve_model(exchange: Exchange, lane: Lane) -> None:
    """`GET /v1/models/{id}`; ids may contain slashes."""
    name = exchange.request.path_params["id"][:_LONGEST_NAME]
    entry = lane.catalog.find(name)
    if exchange.key is not None and not exchange.key.may_use(name):
        raise Forbidden(f"this key may not use model '{name}'", "model")
    await exchange.send_json(entry.as_json())


def _image_params(body: ChatBody) -> list[str]:
    """Where each picture stands in the body, in the client's spelling."""
    return [
        f"messages[{i}].content[{j}].image_url"
        for i, message in enumerate(body.messages)
        for j, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]


async def _load_messages(body: ChatBody, lane: Lane, model: ModelEntry) -> tuple[Message, ...]:
    if all(not part.text for m in body.messages for part in m.content if isinstance(part, TextPart)) and not (
        _image_params(body)
    ):
        raise InvalidRequest("messages: every message is empty: say something", "messages")
    sources = [
        source_from_text(part.image_url.url)
        for m in body.messages
        for part in m.content
        if isinstance(part, ImagePart)
    ]
    pictures = iter(await _load_pictures(lane, model, sources, _image_params(body)))
    return tuple(
        Message(m.internal_role, tuple(_part(part, pictures) for part in m.content), m.internal_calls, m.tool_call_id)
        for m in body.messages
    )


async def _load_pictures(
    lane: Lane, model: ModelEntry, sources: list[ImageSource], params: list[str]
) -> list[Picture]:
    """All at once; the first that fails ends the others."""
    tasks = [asyncio.create_task(lane.load_picture(model, *pair)) for pair in zip(sources, params, strict=True)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _part(part: TextPart | ImagePart, pictures: Iterator[Picture]) -> Text | Picture:
    return Text(part.text) if isinstance(part, TextPart) else next(pictures)

"""OpenAI's dialect: `/v1/chat/completions` and `/v1/models`."""

from collections.abc import Iterator

from serve_app.dialects.openai.chat_answer import ChatEvents, completion_json
from serve_app.dialects.openai.chat_body import ChatBody, ImagePart, RefusalPart, TextPart
from serve_app.exchange.counted import count_answers
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.field_names import in_clients_words
from serve_app.exchange.images import load_images
from serve_app.exchange.json_request import read_json
from serve_app.exchange.lane import Lane
from serve_app.images.gate import ImageSource, source_from_text
from serve_app.messages import GenerationRequest, Message, RgbImage, Text, Write


async def create_chat_completion(exchange: Exchange, lane: Lane, model_name: str | None = None) -> None:
    """A turn of a conversation, streamed or not.

    `model_name` stands above the body's.
    """
    body = await read_json(exchange, ChatBody)
    request = await chat_request(exchange, lane, body, model_name or body.model)
    await count_answers(exchange, lane, request.sampling.num_answers)
    if not body.stream:
        with in_clients_words(body.field_names):
            chunks = await lane.answer(request, exchange.key)
        exchange.count_tokens(sum(chunk.num_tokens for chunk in chunks))
        await exchange.send_json(completion_json(exchange, request.model, chunks))
        return
    encoder = ChatEvents(f"chatcmpl-{exchange.id}", exchange.created_s, request.model, body.running_usage())

    async def produce(write: Write) -> None:
        with in_clients_words(body.field_names):
            exchange.count_tokens((await lane.stream(request, encoder, write, exchange.key)).num_tokens)

    await exchange.send_events(produce)


async def chat_request(exchange: Exchange, lane: Lane, body: ChatBody, model_name: str | None) -> GenerationRequest:
    """The conversation for the model of that name, its images loaded."""
    params = _image_params(body)
    model = lane.choose(model_name, "chat", exchange.key, with_images=bool(params))
    exchange.set_model(model.name)
    images = iter(await load_images(exchange, lane, model, _image_sources(body), params, "messages"))
    messages = tuple(
        Message(m.internal_role, tuple(_part(part, images) for part in m.parts), m.internal_calls, m.tool_call_id)
        for m in body.messages
    )
    return GenerationRequest(
        id=exchange.id,
        model=model.name,
        messages=messages,
        sampling=body.sampling(),
        timeout_s=exchange.remaining_s,
        tool_use=body.tool_use(),
        template_args=body.template_args(),
    )


def _image_params(body: ChatBody) -> list[str]:
    """Where each image stands in the body, in the client's spelling."""
    return [
        f"messages[{i}].content[{j}].image_url"
        for i, message in enumerate(body.messages)
        for j, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    ]


def _image_sources(body: ChatBody) -> list[ImageSource]:
    return [
        source_from_text(part.image_url.url)
        for message in body.messages
        for part in message.content
        if isinstance(part, ImagePart)
    ]


def _part(part: TextPart | RefusalPart | ImagePart, images: Iterator[RgbImage]) -> Text | RgbImage:
    return next(images) if isinstance(part, ImagePart) else Text(part.said)

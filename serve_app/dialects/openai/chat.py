"""OpenAI's chat completions."""

from serve_app.dialects.openai.chat_answer import ChatEvents, completion_json
from serve_app.dialects.openai.chat_body import ChatBody, ImagePart
from serve_app.exchange.exchange import Exchange
from serve_app.images.gate import source_from_text
from serve_app.messages import GenerationRequest, Message, Text


async def create_chat_completion(exchange: Exchange, model_name: str | None = None) -> None:
    """A turn of a conversation, streamed or not.

    `model_name` takes precedence over the body's.
    """
    body = await exchange.read_json(ChatBody)
    request = await chat_request(exchange, body, model_name or body.model)
    await exchange.count_answers(body.num_answers)
    if body.stream:
        encoder = ChatEvents(f"chatcmpl-{exchange.id}", exchange.created_s, request.model, body.running_usage())
        await exchange.send_stream(request, encoder, body.field_names)
    else:
        chunks = await exchange.answer(request, body.field_names)
        await exchange.send_json(completion_json(exchange, request.model, chunks))


async def chat_request(exchange: Exchange, body: ChatBody, model_name: str | None) -> GenerationRequest:
    """The conversation for the model of that name, its images loaded."""
    image_parts = {
        f"messages[{i}].content[{j}].image_url": part
        for i, message in enumerate(body.messages)
        for j, part in enumerate(message.content)
        if isinstance(part, ImagePart)
    }
    model = exchange.choose(model_name, "chat", with_images=bool(image_parts))
    sources = [source_from_text(part.image_url.url) for part in image_parts.values()]
    images = iter(await exchange.load_images(model, sources, list(image_parts), "messages"))
    messages = tuple(
        Message(
            message.internal_role,
            tuple(next(images) if isinstance(part, ImagePart) else Text(part.words) for part in message.parts),
            message.internal_calls,
            message.tool_call_id,
        )
        for message in body.messages
    )
    return exchange.generation(
        model, messages, body.sampling(), tool_use=body.tool_use(), template_args=body.template_args()
    )

"""`/tokenize` and `/chat_tokenize`: what a prompt is before anything is generated."""

from serve_app.dialects.openai.chat import chat_request
from serve_app.dialects.openai.chat_body import ChatBody
from serve_app.dialects.tgi.answer import TGI_NAMES
from serve_app.dialects.tgi.body import TokenizeBody
from serve_app.dialects.tgi.model import choose_model, wanted_model
from serve_app.errors import UnsupportedTask
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.field_names import in_clients_words
from serve_app.exchange.json_request import read_json
from serve_app.exchange.lane import Lane
from serve_app.messages import GenerationRequest, Message, RawPrompt, Sampling, Text, TokenizedPrompt


async def tokenize(exchange: Exchange, lane: Lane) -> None:
    """The prompt's tokens."""
    body = await read_json(exchange, TokenizeBody)
    model = choose_model(exchange, lane, body.model)
    request = GenerationRequest(
        id=exchange.id,
        model=model.name,
        messages=(Message("user", (Text(body.inputs),)),),
        sampling=Sampling(),
        timeout_s=exchange.remaining_s,
        raw=RawPrompt(),
    )
    with in_clients_words(TGI_NAMES):
        prompt = await lane.tokenize(request, exchange.key)
    kept = -body.parameters.truncate if body.parameters and body.parameters.truncate else None
    await exchange.send_json(_tokens_json(prompt)[kept:])


async def chat_tokenize(exchange: Exchange, lane: Lane) -> None:
    """The prompt that the chat template makes of a conversation, and its tokens."""
    body = await read_json(exchange, ChatBody)
    if any(part.type == "image_url" for message in body.messages for part in message.content):
        raise UnsupportedTask("messages: only text is tokenized: leave the images out", "messages")
    request = await chat_request(exchange, lane, body, wanted_model(exchange) or body.model)
    prompt = await lane.tokenize(request, exchange.key)
    await exchange.send_json({"tokenize_response": _tokens_json(prompt), "templated_text": prompt.text})


def _tokens_json(prompt: TokenizedPrompt) -> list[dict[str, object]]:
    return [
        {"id": one.id, "text": prompt.text[one.start : one.stop], "start": one.start, "stop": one.stop}
        for one in prompt.tokens
    ]

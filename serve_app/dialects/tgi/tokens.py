"""`/tokenize` and `/chat_tokenize`: what a prompt is before anything is generated."""

from serve_app.dialects.openai.chat import chat_request
from serve_app.dialects.openai.chat_body import ChatBody
from serve_app.dialects.tgi.answer import TGI_NAMES
from serve_app.dialects.tgi.body import TokenizeBody
from serve_app.dialects.tgi.model import choose_model, model_outside_body
from serve_app.errors import UnsupportedTask
from serve_app.exchange.exchange import Exchange
from serve_app.messages import Message, RawPrompt, Sampling, Text, TokenizedPrompt


async def tokenize(exchange: Exchange) -> None:
    """The prompt's tokens."""
    body = await exchange.read_json(TokenizeBody)
    model = choose_model(exchange, body.model)
    messages = (Message("user", (Text(body.inputs),)),)
    prompt = await exchange.tokenize(exchange.generation(model, messages, Sampling(), raw=RawPrompt()), TGI_NAMES)
    num_last = body.parameters.truncate if body.parameters else None
    await exchange.send_json(_tokens_json(prompt)[-num_last if num_last else None :])


async def chat_tokenize(exchange: Exchange) -> None:
    """The prompt that the chat template makes of a conversation, and its tokens."""
    body = await exchange.read_json(ChatBody)
    if any(part.type == "image_url" for message in body.messages for part in message.content):
        raise UnsupportedTask("messages: only text is tokenized: leave the images out", "messages")
    prompt = await exchange.tokenize(await chat_request(exchange, body, model_outside_body(exchange) or body.model))
    await exchange.send_json({"tokenize_response": _tokens_json(prompt), "templated_text": prompt.text})


def _tokens_json(prompt: TokenizedPrompt) -> list[dict[str, object]]:
    return [
        {"id": token.id, "text": prompt.text[token.start : token.stop], "start": token.start, "stop": token.stop}
        for token in prompt.tokens
    ]

"""What LlamaIndex's `OpenAILike` makes of the service: ask_llamaindex.py URL KEY IMAGE PROMPT, one line of JSON.

IMAGE is a data URI of a red circle, PROMPT a prompt as the demo's chat template writes it.
"""

import asyncio
import base64
import json
import sys
from collections.abc import Callable
from typing import Any

import openai
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.llms.openai_like import OpenAILike

url, key, image, prompt = sys.argv[1:]
WHO = [ChatMessage(role="user", content="Who are you?")]


def client(**more: Any) -> OpenAILike:
    fields: dict[str, Any] = {
        "api_base": f"{url}/v1",
        "api_key": key,
        "model": "tgi",
        "temperature": 0,
        "max_tokens": 60,
        "max_retries": 0,
        "context_window": 2048,
    }
    return OpenAILike(**(fields | more))


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """Which of the openai package's classes says what."""
    try:
        call()
    except openai.APIStatusError as error:
        return type(error).__name__, str(error)
    return "none", ""


chat, text = client(is_chat_model=True), client(is_chat_model=False)
file = base64.b64decode(image.partition(",")[2])
seen = ChatMessage(role="user", blocks=[ImageBlock(image=file), TextBlock(text="What color is the circle?")])
turns = [
    ChatMessage(role="system", content="You are brief."),
    ChatMessage(role="user", content="Hello"),
    ChatMessage(role="assistant", content="Hello!"),
    *WHO,
]
told = {
    "whole": chat.chat(WHO).message.content,
    "pieces": [piece.delta for piece in chat.stream_chat(WHO)],
    "turns": chat.chat(turns).message.content,
    "image": chat.chat([seen]).message.content,
    "asked_by_text": chat.complete("Who are you?").text,
    "completed": text.complete(prompt).text,
    "completed_pieces": [piece.delta for piece in text.stream_complete(prompt)],
    "stopped": chat.chat(WHO, stop=["model"]).message.content,
    "awaited": asyncio.run(client(is_chat_model=True).achat(WHO)).message.content,
    "wrong_key": refusal(lambda: client(is_chat_model=True, api_key="wrong").chat(WHO)),
    "wrong_model": refusal(lambda: client(is_chat_model=True, model="nobody").chat(WHO)),
}
print(json.dumps(told))

"""What LangChain's `ChatOpenAI` makes of the service: ask_langchain.py URL KEY IMAGE, one line of JSON.

IMAGE is a data URI of a red circle.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any, Literal

import openai
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

url, key, image = sys.argv[1:]
WHO = "Who are you?"


class Seen(BaseModel):
    """What is in the image."""

    color: Literal["red", "blue"]


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def client(**more: Any) -> ChatOpenAI:
    return ChatOpenAI(
        **{"base_url": f"{url}/v1", "api_key": key, "model": "tgi", "temperature": 0, "max_retries": 0, **more}
    )


def refusal(call: Callable[[], object]) -> tuple[str, str]:
    """Which of the openai package's classes says what."""
    try:
        call()
    except openai.APIStatusError as error:
        return type(error).__name__, str(error)
    return "none", ""


def about(image_part: dict[str, Any]) -> list[BaseMessage]:
    return [HumanMessage(content=[{"type": "text", "text": "What color is the circle?"}, image_part])]


chat = client()
whole = chat.invoke(WHO)
pieces = list(client(stream_usage=True).stream(WHO))
data = image.partition(",")[2]
turns = [SystemMessage("You are brief."), HumanMessage("Hello"), AIMessage("Hello!"), HumanMessage(WHO)]
sampled = client(temperature=1.5, seed=7, max_tokens=12)
told = {
    "whole": whole.content,
    "usage": whole.usage_metadata,
    "finish_reason": whole.response_metadata["finish_reason"],
    "pieces": [piece.content for piece in pieces],
    "streamed_usage": [piece.usage_metadata for piece in pieces if piece.usage_metadata],
    "turns": chat.invoke(turns).content,
    "image": chat.invoke(about({"type": "image_url", "image_url": {"url": image}})).content,
    "own_image_part": chat.invoke(about({"type": "image", "base64": data, "mime_type": "image/png"})).content,
    "stopped": chat.bind(stop=["model"]).invoke(WHO).content,
    "seeded": [sampled.invoke("Hello").content for _ in range(2)],
    "several": [answer.content for answer in chat.batch([WHO, "Hello"])],
    "logprobs": len(chat.bind(logprobs=True, top_logprobs=2).invoke(WHO).response_metadata["logprobs"]["content"]),
    # A model of this size would write blanks for ever.
    "structured": client(frequency_penalty=2)
    .with_structured_output(Seen)
    .invoke(about({"type": "image_url", "image_url": {"url": image}}))
    .model_dump(),
    "awaited": asyncio.run(client().ainvoke(WHO)).content,
    "tools": refusal(lambda: chat.bind_tools([WEATHER]).invoke(WHO)),
    "wrong_key": refusal(lambda: client(api_key="wrong").invoke(WHO)),
    "wrong_model": refusal(lambda: client(model="nobody").invoke(WHO)),
    "wrong_value": refusal(lambda: client(temperature=3).invoke(WHO)),
}
print(json.dumps(told))

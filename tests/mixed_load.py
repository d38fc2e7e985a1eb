"""Requests of every kind, each with an answer that can be told right from wrong, whatever else is under way."""

import json
import random
from collections.abc import Awaitable, Callable

import httpx

from tests.drawings import COLORS, SHAPES, b64, data_uri, png, says

NUM_KINDS = 5


async def mixed_request(
    client: httpx.AsyncClient, number: int, model: str = "demo", echo_model: str | None = "script"
) -> str:
    """Request `number`: a caption, an upload, a chat, a streamed chat or a text for `echo_model`, in turn.

    Returns `right`, `wrong: …`, or how it failed: a status, an error event's code, or the exception's class.
    """
    rng = random.Random(number)
    color, shape = rng.choice(sorted(COLORS)), rng.choice(SHAPES)
    image = png(color, shape, (rng.choice((96, 200, 320)), rng.choice((120, 240))))
    ways: tuple[Callable[[], Awaitable[httpx.Response]], ...] = (
        lambda: client.post("/v1/captions", json={"model": model, "image": b64(image)}),
        lambda: client.post(
            "/v1/captions", files={"image": image}, data={"model": model, "stream": "true", "style": "tags"}
        ),
        lambda: client.post("/v1/chat/completions", json=_question(model, image, stream=False)),
        lambda: client.post("/v1/chat/completions", json=_question(model, image, stream=True)),
        lambda: client.post("/v1/chat/completions", json=_echo(echo_model, f"word{number}")),
    )
    kind = number % (NUM_KINDS if echo_model else NUM_KINDS - 1)
    try:
        response = await ways[kind]()
    except httpx.TransportError as exc:
        return type(exc).__name__
    if response.status_code != 200:
        return str(response.status_code)
    text, failure = _text_of(response)
    if failure is not None:
        return failure
    is_right = text.strip() == f"word{number}" if kind == 4 else says(text, color, shape)
    return "right" if is_right else f"wrong: {text!r} for request {number}, a {color} {shape}"


def _question(model: str, image: bytes, *, stream: bool) -> dict[str, object]:
    parts = [
        {"type": "image_url", "image_url": {"url": data_uri(image)}},
        {"type": "text", "text": "What is in this picture?"},
    ]
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": parts}]}


def _echo(model: str | None, word: str) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": f"!echo {word}"}]}


def _text_of(response: httpx.Response) -> tuple[str, str | None]:
    """The answer's text, and the failure of a stream that ended with an error or without its end."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        body = response.json()
        return body["choices"][0]["message"]["content"] if "choices" in body else body["data"][0]["caption"], None
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    if not lines or lines[-1] != "[DONE]":
        return "", json.loads(lines[-1])["error"]["code"] if lines and "error" in lines[-1] else "cut stream"
    events = [json.loads(line) for line in lines[:-1]]
    if events[-1].get("object") == "error":
        return "", events[-1]["error"]["code"]
    if events[-1].get("object") == "caption":
        return events[-1]["caption"], None
    return "".join(event["choices"][0]["delta"].get("content", "") for event in events), None

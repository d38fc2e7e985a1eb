"""A conversation with one service: its turns, its images, and the streamed answers.

An answer that breaks off leaves no trace of its question, so that asking again is asking the same; an
answer that the user stops stays as far as it came.
"""

import base64
import json
import os
import sys
from contextlib import suppress
from typing import Any

import httpx

from serve_app.cli.captioning.images import MEDIA_TYPES, extension_of
from serve_app.cli.client import error_of, translated
from serve_app.cli.errors import USAGE, CliError, Dropped
from serve_app.cli.terminal import printable
from serve_app.client.sse import events


class Conversation:
    """Speaks `POST /v1/chat/completions`, streamed, and prints answers on stdout as they come."""

    def __init__(
        self, client: httpx.Client, model: str | None, system: str | None, max_tokens: int | None,
        temperature: float | None,
    ) -> None:  # fmt: skip
        self.model = model
        self._client = client
        self._system = system
        self._sampling = {"max_tokens": max_tokens, "temperature": temperature}
        self._turns: list[dict[str, Any]] = []
        self._images: list[str] = []

    def begin_anew(self) -> None:
        """Forget all turns and images."""
        self._turns, self._images = [], []

    def add_image(self, source: str) -> None:
        """A file, or an address that the service fetches, for the next message. Raises `CliError`."""
        if source.startswith(("http://", "https://", "data:")):
            self._images.append(source)
            return
        try:
            with open(os.path.expanduser(source), "rb") as file:
                data = base64.b64encode(file.read()).decode()
        except OSError as exc:
            raise CliError(f"{source} can't be read ({exc.strerror}): check the path", USAGE) from exc
        media_type = MEDIA_TYPES.get(extension_of(source), "application/octet-stream")
        self._images.append(f"data:{media_type};base64,{data}")

    def ask(self, message: str) -> None:
        """Print the answer as it comes. Raises `CliError`; a `KeyboardInterrupt` hangs up on the service."""
        question = {"role": "user", "content": self._content(message)}
        answer: list[str] = []
        try:
            finish_reason = self._stream([*self._turns, question], answer)
        except KeyboardInterrupt:
            self._keep(question, answer)
            raise
        finally:
            if answer:
                with suppress(BrokenPipeError):
                    print(flush=True)
        self._keep(question, answer)
        if finish_reason == "length":
            print("(cut at the most tokens allowed: --max-tokens)", file=sys.stderr)

    def _keep(self, question: dict[str, Any], answer: list[str]) -> None:
        self._images = []
        if answer:
            self._turns += [question, {"role": "assistant", "content": "".join(answer)}]

    def _content(self, message: str) -> str | list[dict[str, Any]]:
        message = message.encode("utf-8", "replace").decode()  # a pipe may hold any bytes
        if not self._images:
            return message
        images = [{"type": "image_url", "image_url": {"url": url}} for url in self._images]
        return [*images, {"type": "text", "text": message}]

    def _stream(self, turns: list[dict[str, Any]], answer: list[str]) -> str | None:
        """Print and collect the answer's pieces; returns the finish reason."""
        if self._system:
            turns = [{"role": "system", "content": self._system}, *turns]
        values: dict[str, Any] = {"model": self.model, **self._sampling}
        body = {name: value for name, value in values.items() if value is not None}
        body |= {"messages": turns, "stream": True}
        finish_reason = None
        with (
            translated(self._client.base_url),
            self._client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            if not response.is_success:
                response.read()
                raise error_of(response)
            for data in events(response.iter_bytes()):
                if data == "[DONE]":
                    return finish_reason
                finish_reason = self._take(data, answer) or finish_reason
        raise Dropped("The answer broke off before its end: ask again, or look at the service's log")

    def _take(self, data: str, answer: list[str]) -> str | None:
        try:
            event = json.loads(data)
            if "error" in event:
                raise CliError(f"The answer failed: {event['error']['message']}")
            if not event["choices"]:
                return None
            choice = event["choices"][0]
            text, finish_reason = choice["delta"].get("content") or "", choice.get("finish_reason")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
            raise CliError("The service sent an event that isn't one of a chat: check --url") from exc
        if text:
            answer.append(text)
            text = printable(text) if sys.stdout.isatty() else text
            print(text.encode("utf-8", "replace").decode(), end="", flush=True)
        return str(finish_reason) if finish_reason else None

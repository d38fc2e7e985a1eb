"""A conversation with one service: its turns, its images, and the streamed answers.

An answer that breaks off leaves no trace of its question, so that the user can ask again. An answer that the user
stops stays as far as it came.
"""

import asyncio
import base64
import os
import sys
from contextlib import aclosing, suppress
from typing import Any, Self

from serve_app.cli.captioning.names import MEDIA_TYPES, extension_of
from serve_app.cli.errors import USAGE, CliError
from serve_app.cli.terminal import printable
from serve_app.client.api import ApiClient, Delta


class Conversation:
    """Asks a chat model, and prints its answers on stdout as they come. Used in a `with` block."""

    def __init__(self, client: ApiClient, system: str | None, fields: dict[str, Any]) -> None:
        """`fields` of the request's body: model, max_tokens, temperature. One that is None isn't sent."""
        self.fields = fields
        self._client = client
        self._instructions = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, Any]] = []
        self._images: list[str] = []
        self._runner = asyncio.Runner()  # keeps the connection between questions

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._runner:
            self._runner.run(self._client.close())

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
        """Print the answer as it comes. Raises `ServiceError`; a `KeyboardInterrupt` hangs up on the service."""
        question = {"role": "user", "content": self._content(message)}
        answer: list[str] = []
        try:
            finish_reason = self._runner.run(self._print_answer(question, answer))
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

    async def _print_answer(self, question: dict[str, Any], answer: list[str]) -> str | None:
        """Prints the answer's pieces and appends them to `answer`. Returns the finish reason."""
        body = {name: value for name, value in self.fields.items() if value is not None}
        body["messages"] = [*self._instructions, *self._turns, question]
        delta = Delta()
        async with aclosing(self._client.stream_chat(body)) as deltas:
            async for delta in deltas:
                if delta.text:
                    answer.append(delta.text)
                    text = printable(delta.text) if sys.stdout.isatty() else delta.text
                    print(text.encode("utf-8", "replace").decode(), end="", flush=True)
        return delta.finish_reason

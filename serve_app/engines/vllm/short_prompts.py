"""Renders short prompts on the event loop, so that requests which come together reach the engine together.

vLLM gives each prompt to its one thread twice, for its chat template and for its tokens. Between any two of them the
engine may begin a step, so that it computes many small batches in place of a few large ones.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from vllm.renderers.base import BaseRenderer
from vllm.renderers.params import ChatParams

_SHORT_CHARACTERS = 4_096  # rendered within a millisecond
_CHARACTERS_PER_MESSAGE = 64  # what a message costs beside its text
_MOST_PER_TURN = 4  # in one turn of the loop, so that the tokens of running answers come between them


def render_short_prompts_here(renderer: BaseRenderer[Any]) -> None:
    """Change the renderer in place: `render_chat_async` calls `render_chat` for a short prompt of texts alone."""
    in_threads, num_in_threads = renderer.render_chat_async, _counter(renderer._executor)
    turn = _Turn()

    async def render_chat_async(
        conversations: Sequence[list[Any]], chat_params: ChatParams, *args: Any, **options: Any
    ) -> Any:
        if _are_short(conversations, chat_params):
            await turn.take()
            if not num_in_threads():  # else a thread may use the tokenizer, and vLLM would copy it for this prompt
                return renderer.render_chat(conversations, chat_params, *args, **options)
        return await in_threads(conversations, chat_params, *args, **options)

    renderer.render_chat_async = render_chat_async


class _Turn:
    """A turn of the event loop, in which there is room for a few prompts."""

    def __init__(self) -> None:
        self._num_left = _MOST_PER_TURN

    async def take(self) -> None:
        """Wait for a turn that has room, and take it."""
        while not self._num_left:  # noqa: ASYNC110 -- an event would wake all of them at once
            await asyncio.sleep(0)
        if self._num_left == _MOST_PER_TURN:
            asyncio.get_running_loop().call_soon(self._begin_next)
        self._num_left -= 1

    def _begin_next(self) -> None:
        self._num_left = _MOST_PER_TURN


def _counter(executor: Executor) -> Callable[[], int]:
    """A function that says how many pieces of work the executor has. Changes the executor in place."""
    submit, unfinished = executor.submit, set[Future[Any]]()

    def counted(function: Any, /, *args: Any, **options: Any) -> Future[Any]:
        future = submit(function, *args, **options)
        unfinished.add(future)
        future.add_done_callback(unfinished.discard)
        return future

    executor.submit = counted  # type: ignore[method-assign]
    return unfinished.__len__


def _are_short(conversations: Sequence[list[Any]], chat_params: ChatParams) -> bool:
    if chat_params.chat_template_kwargs.get("tools"):
        return False
    size = 0
    for message in (message for conversation in conversations for message in conversation):
        content = message.get("content")
        if not isinstance(content, str) or message.get("tool_calls"):
            return False
        size += len(content) + _CHARACTERS_PER_MESSAGE
    return size <= _SHORT_CHARACTERS

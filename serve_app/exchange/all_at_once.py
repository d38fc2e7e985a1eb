"""Several generations of one HTTP request, side by side."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def all_at_once(do: Callable[[int], Coroutine[Any, Any, T]], count: int) -> list[T]:
    """The results of `do(0)` to `do(count - 1)`. The first that raises ends the others.

    Not a `TaskGroup`: Python 3.11's leaves a cancellation on our task, which would look like the client's leaving.
    """
    tasks = [asyncio.create_task(do(index)) for index in range(count)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

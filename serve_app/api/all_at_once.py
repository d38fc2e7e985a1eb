"""Several generations of one HTTP request, side by side."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def all_at_once(do: Callable[[int], Coroutine[Any, Any, T]], count: int) -> list[T]:
    """What `do` gives for 0 to count - 1. The first that raises ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(do(index)) for index in range(count)]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]

"""Where the CPU work on a request's body is done: what is large on a thread, so that the event loop serves others.

One thread for a process: parsers hold Python's lock while they run, and with more threads the loop would have to wait
for each of them in turn.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

LARGEST_ON_LOOP = 65_536  # bytes or characters: a millisecond of work; below it, a thread's turn costs more
_thread = ThreadPoolExecutor(1, thread_name_prefix="body")


async def off_loop(size: int, work: Callable[..., T], *args: object) -> T:
    """What `work(*args)` returns; `size` is how many bytes or characters it looks at."""
    if size <= LARGEST_ON_LOOP:
        return work(*args)
    return await asyncio.get_running_loop().run_in_executor(_thread, work, *args)

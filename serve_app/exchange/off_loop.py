"""CPU work on large request bodies runs on a thread, so that the event loop serves other requests.

A process has one such thread: parsers hold Python's lock while they run, and the loop would wait for each of them.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

LARGEST_ON_LOOP = 65_536  # bytes or characters: a millisecond of work; handing less to a thread costs more
_thread = ThreadPoolExecutor(1, thread_name_prefix="body")


async def off_loop(size: int, work: Callable[..., T], *args: object) -> T:
    """Return `work(*args)`, which looks at `size` bytes or characters."""
    if size <= LARGEST_ON_LOOP:
        return work(*args)
    return await asyncio.get_running_loop().run_in_executor(_thread, work, *args)

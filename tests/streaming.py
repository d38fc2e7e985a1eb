"""A generator's chunks one after another, as tests like to read them; closing it stops the work."""

import asyncio
from collections.abc import AsyncGenerator

from serve_app.messages import Chunk, GenerationRequest, Generator


async def stream(generator: Generator, request: GenerationRequest) -> AsyncGenerator[Chunk, None]:
    chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()
    work = asyncio.create_task(generator.generate(request, chunks.put_nowait))
    work.add_done_callback(lambda _: chunks.put_nowait(None))
    try:
        while (chunk := await chunks.get()) is not None:
            yield chunk
        await work
    finally:
        if not work.done():
            work.cancel()
            await asyncio.wait([work])

"""The scripted engine: it says what its script says, fails on command, and stops when its reader leaves."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from serve_app.config.applications import ModelConfig
from serve_app.engines.scripted.engine import ScriptedEngine
from serve_app.errors import ConfigError, ContextTooLong, DeadlineExceeded, EngineFailed
from serve_app.messages import Chunk, GenerationRequest, Message, RgbImage, Sampling, Text
from tests.streaming import stream


@asynccontextmanager
async def started(**engine_args: Any) -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine(ModelConfig(source="none", engine="scripted", engine_args=engine_args))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def request(*parts: str | RgbImage, timeout_s: float = 60, **sampling: Any) -> GenerationRequest:
    given = tuple(Text(part) if isinstance(part, str) else part for part in parts)
    return GenerationRequest("id", "script", (Message("user", given),), Sampling(**sampling), timeout_s)


async def chunks_of(engine: ScriptedEngine, asked: GenerationRequest) -> list[Chunk]:
    return [chunk async for chunk in stream(engine, asked)]


async def test_echo_is_a_token_a_word() -> None:
    async with started() as engine:
        chunks = await chunks_of(engine, request("!echo one two three"))
    assert "".join(c.text for c in chunks).strip() == "one two three"
    assert [c.num_tokens for c in chunks] == [1, 1, 1]
    assert [c.finish_reason for c in chunks] == [None, None, "stop"]
    assert [c.queue_s is not None for c in chunks] == [True, False, False]


async def test_max_tokens_cuts() -> None:
    async with started() as engine:
        chunks = await chunks_of(engine, request("!tokens 9", max_tokens=4))
    assert len(chunks) == 4
    assert chunks[-1].finish_reason == "length"


async def test_an_image_is_named_by_size_and_colour() -> None:
    async with started() as engine:
        text = "".join(c.text for c in await chunks_of(engine, request(RgbImage(4, 2, b"\xff\x00\x10" * 8), "what?")))
    assert "4x2" in text
    assert "ff0010" in text


@pytest.mark.parametrize(("text", "num_before"), [("!oom", 0), ("!fail-after 3", 3)])
async def test_failures_on_command(text: str, num_before: int) -> None:
    async with started() as engine:
        answer = stream(engine, request(text))
        for _ in range(num_before):
            await anext(answer)
        with pytest.raises(EngineFailed):
            await anext(answer)


async def test_a_hang_ends_at_the_deadline() -> None:
    async with started() as engine:
        with pytest.raises(DeadlineExceeded):
            async with asyncio.timeout(10):
                await chunks_of(engine, request("!hang", timeout_s=0.2))
        assert engine.num_waiting == 0


async def test_unhealthy_stays_unhealthy() -> None:
    async with started() as engine:
        await engine.check_health()
        await chunks_of(engine, request("!unhealthy"))
        with pytest.raises(EngineFailed):
            await engine.check_health()


async def test_closing_stops_the_work() -> None:
    async with started() as engine:
        async with aclosing(stream(engine, request("!tokens 100000"))) as chunks:
            for _ in range(3):
                await anext(chunks)
        made = engine.num_generated
        await asyncio.sleep(0.1)
        assert engine.num_generated == made


async def test_beyond_its_capacity_requests_wait() -> None:
    async with started(capacity=1) as engine:
        first = asyncio.create_task(chunks_of(engine, request("!tokens 30")))
        second = asyncio.create_task(chunks_of(engine, request("!echo hi")))
        waited = (await second)[0].queue_s
        await first
        assert waited is not None
        assert waited > 0
        assert engine.num_waiting == 0


async def test_a_waiting_request_leaves_at_its_deadline() -> None:
    async with started(capacity=1) as engine, aclosing(stream(engine, request("!tokens 100000"))) as running:
        await anext(running)
        with pytest.raises(DeadlineExceeded):
            async with asyncio.timeout(10):
                await chunks_of(engine, request("!echo hi", timeout_s=0.2))


async def test_context_errors_name_both_numbers() -> None:
    async with started(context_length=10) as engine:
        with pytest.raises(ContextTooLong, match=r"(?s)10 tokens.* 12 tokens"):
            await chunks_of(engine, request("w " * 12))
        with pytest.raises(ContextTooLong, match=r"(?s)10 tokens.*20"):
            await chunks_of(engine, request("w", max_tokens=20))


async def test_stop_ends_running_work() -> None:
    async with started() as engine:
        running = stream(engine, request("!tokens 100000"))
        await anext(running)
        await engine.stop()
        with pytest.raises(EngineFailed):
            async for _ in running:
                pass


async def test_a_start_error_and_a_wrong_key_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="no weights"):
        async with started(start_error="no weights"):
            pass
    with pytest.raises(ConfigError, match="tokns"):
        ScriptedEngine(ModelConfig(source="none", engine="scripted", engine_args={"tokns": 3}))

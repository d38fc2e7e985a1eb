"""Events that wait for a client: none lost, joined where it is behind, and only so many."""

import asyncio

import pytest

from serve_app.errors import ClientTooSlow
from serve_app.exchange.outbox import Outbox


async def test_what_piled_up_goes_out_as_one() -> None:
    outbox = Outbox(100)
    for event in (b"one ", b"two ", b"three"):
        outbox.write(event)
    assert await outbox.read() == (b"one two three", False)
    outbox.end()
    assert await outbox.read() == (b"", True)


async def test_a_waiting_reader_gets_the_next_event() -> None:
    outbox = Outbox(100)
    reading = asyncio.create_task(outbox.read())
    await asyncio.sleep(0)
    outbox.write(b"now")
    outbox.end()
    assert await reading == (b"now", True), "the last event says that it is the last"


async def test_everything_arrives_in_order_from_an_unsteady_writer() -> None:
    outbox = Outbox(1_000_000)

    async def write() -> None:
        for number in range(1000):
            outbox.write(b"%d," % number)
            if number % 7 == 0:
                await asyncio.sleep(0)
        outbox.end()

    writing = asyncio.create_task(write())
    whole, is_last = b"", False
    while not is_last:
        data, is_last = await outbox.read()
        whole += data
    await writing
    assert whole == b"".join(b"%d," % number for number in range(1000))


async def test_a_client_that_never_reads_is_given_up() -> None:
    outbox = Outbox(10)
    outbox.write(b"12345678")
    with pytest.raises(ClientTooSlow, match=r"11 bytes.*10 are kept"):
        outbox.write(b"901")
    assert await outbox.read() == (b"12345678", False), "what it was promised before is still its own"


async def test_silence_is_filled_and_nothing_else_is() -> None:
    outbox = Outbox(100)
    outbox.write_when_silent(b"still here", 0.02)
    assert await outbox.read() == (b"still here", False)
    assert await outbox.read() == (b"still here", False)
    outbox.write(b"event")
    await asyncio.sleep(0.2)
    assert await outbox.read() == (b"event", False), "a client that is behind needs no comments"
    outbox.end()
    await asyncio.sleep(0.1)
    assert await outbox.read() == (b"", True)


async def test_a_pause_lasts_its_time_or_until_the_end() -> None:
    outbox = Outbox(100)
    pausing = asyncio.create_task(outbox.pause(3600))
    await asyncio.sleep(0)
    outbox.write(b"more")
    await asyncio.sleep(0)
    assert not pausing.done()
    outbox.end()
    async with asyncio.timeout(30):
        await pausing
        await outbox.pause(3600)
        await Outbox(100).pause(0.01)
    assert await outbox.read() == (b"more", True)

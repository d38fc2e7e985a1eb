"""The side stream: each event once and in order, nothing from strangers, and a lost end fails its streams at once."""

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest

from serve_app.errors import ClientTooSlow, ReplicaDied
from serve_app.routing.side_stream import _HEADER, Inbox, IncomingStream, Outlets, _Receiver

DEADLINE_S = 20.0  # generous: what happens at once must not hang


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Inbox, Outlets]]:
    inbox, outlets = Inbox("127.0.0.1"), Outlets()
    await inbox.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield inbox, outlets
    finally:
        outlets.close()
        await inbox.stop()
        await asyncio.sleep(0.05)  # in which asyncio closes its sockets


async def test_each_stream_gets_its_own_events_once_and_in_order() -> None:
    async with listening() as (inbox, outlets):
        received: dict[int, list[bytes]] = {number: [] for number in range(50)}

        async def answer(number: int) -> None:
            rng = random.Random(number)
            with inbox.open(received[number].append) as incoming:
                outlet = await outlets.open(incoming.address)
                for event in range(100):
                    outlet.write(b"%d/%d " % (number, event) + bytes(rng.randrange(2000)))
                    if rng.random() < 0.3:
                        await asyncio.sleep(0)
                await incoming.completed(100)

        await asyncio.gather(*(answer(number) for number in received))
        for number, events in received.items():
            assert [event.split(b" ")[0] for event in events] == [b"%d/%d" % (number, e) for e in range(100)]
        assert inbox.num_open == 0


async def test_all_requests_of_an_ingress_share_one_connection() -> None:
    async with listening() as (inbox, outlets):
        with inbox.open(lambda _: None) as one, inbox.open(lambda _: None) as other:
            for incoming in (one, other):
                (await outlets.open(incoming.address)).write(b"x")
                await incoming.completed(1)
            assert one.connection is other.connection


def test_events_are_cut_right_however_the_network_cuts_them() -> None:
    rng = random.Random(1)
    sent = [(rng.randrange(3), bytes([rng.randrange(256)]) * rng.randrange(40)) for _ in range(300)]
    data = b"".join(_HEADER.pack(stream, len(event)) + event for stream, event in sent)
    received: dict[int, list[bytes]] = {0: [], 1: []}  # nobody reads stream 2: its client has left
    streams = {number: IncomingStream(None, got.append) for number, got in received.items()}  # type: ignore[arg-type]  # no address
    receiver = _Receiver(streams, set())
    while data:
        size = rng.randint(1, 30)
        receiver.data_received(data[:size])
        data = data[size:]
    for number, got in received.items():
        assert got == [event for stream, event in sent if stream == number]


async def test_a_writer_that_refuses_breaks_its_stream_alone() -> None:
    def too_slow(_: bytes) -> None:
        raise ClientTooSlow("too slow")

    async with listening() as (inbox, outlets):
        got: list[bytes] = []
        broken: list[bool] = []
        with inbox.open(too_slow) as slow, inbox.open(got.append) as quick:
            slow.on_broken = lambda: broken.append(True)
            for incoming in (slow, quick):
                outlet = await outlets.open(incoming.address)
                outlet.write(b"one")
                outlet.write(b"two")
            await quick.completed(2)
            with pytest.raises(ClientTooSlow):
                await slow.completed(2)
        assert got == [b"one", b"two"]
        assert broken == [True], "told once"


async def test_a_lost_connection_fails_both_ends() -> None:
    async with listening() as (inbox, outlets):
        with inbox.open(lambda _: None) as incoming:
            outlet = await outlets.open(incoming.address)
            outlet.write(b"begun")
            await incoming.completed(1)
            outlets.close()
            with pytest.raises(ReplicaDied):
                await incoming.completed(2)
            with pytest.raises(ReplicaDied):
                await outlet.lost
        with inbox.open(lambda _: None) as again:  # and the next request connects anew
            (await outlets.open(again.address)).write(b"x")
            await again.completed(1)


async def test_events_that_never_come_are_an_error_and_no_hang() -> None:
    async with listening() as (inbox, outlets):
        with inbox.open(lambda _: None) as incoming:
            (await outlets.open(incoming.address)).write(b"one of two")
            with pytest.raises(ReplicaDied):
                await incoming.completed(2)


async def test_an_ingress_that_is_gone_is_an_error() -> None:
    async with listening() as (inbox, outlets):
        with inbox.open(lambda _: None) as incoming:
            address = incoming.address
    with pytest.raises(ReplicaDied):
        await outlets.open(replace(address, port=1))


@pytest.mark.parametrize("stranger", ["plain text", "TLS without a certificate", "another ingress's certificate"])
async def test_strangers_get_nothing_in(stranger: str) -> None:
    async with listening() as (inbox, _):
        got: list[bytes] = []
        with inbox.open(got.append) as incoming:
            forged = _HEADER.pack(incoming.address.stream, 4) + b"evil"
            if stranger == "another ingress's certificate":
                other = Inbox("127.0.0.1")
                await other.start()
                with other.open(lambda _: None) as theirs:
                    mixed = replace(incoming.address, credentials=theirs.address.credentials)
                with pytest.raises(ReplicaDied):
                    await Outlets().open(mixed)
                await other.stop()
            else:
                context = ssl.create_default_context() if stranger.startswith("TLS") else None
                if context:
                    context.check_hostname = False
                    context.verify_mode = ssl.CERT_NONE
                with suppress(OSError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", incoming.address.port, ssl=context)
                    writer.write(forged)
                    assert await reader.read() == b""
                    writer.close()
        assert got == []


async def test_an_ingress_that_does_not_read_costs_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.routing.side_stream._MAX_UNSENT_BYTES", 1_000_000)
    async with listening() as (inbox, outlets):
        with inbox.open(lambda _: None) as incoming:
            outlet = await outlets.open(incoming.address)
            outlet.write(b"x")
            await incoming.completed(1)
            transport = incoming.connection.transport  # type: ignore[attr-defined]  # a receiver
            transport.pause_reading()
            while not outlet.lost.done():
                outlet.write(bytes(100_000))
                await asyncio.sleep(0)
            assert isinstance(outlet.lost.exception(), ReplicaDied)

"""The side stream: events from replicas to an ingress, beside Ray, whose cost for a message is many times a token's.

The request itself is an ordinary Ray Serve call, which chooses the replica, counts, queues and cancels. It carries
an `Address`, and the replica sends the answer's events there: all that one engine step made for the requests of one
ingress in one message over one TCP connection. The call's result says how many writes there were, so that an answer
is complete or an error.

Each ingress makes a key and a certificate of its own when it starts; both ends prove with them that they are who
was meant (mutual TLS), and only Ray carries them. So the port takes nothing from anyone who wasn't given a request.
Knows nothing of models, chunks or HTTP.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from struct import Struct
from typing import cast

from serve_app.errors import ReplicaDied
from serve_app.messages import Write
from serve_app.routing.mutual_tls import new_credentials, tls_context

logger = logging.getLogger("serve_app")

_HEADER = Struct("!QI")  # which stream, how many bytes of events follow
_CONNECT_TIMEOUT_S = 5.0
_LAST_EVENTS_TIMEOUT_S = 5.0  # between a call's result, which Ray carries, and its last events, which we do
_RESULT_GRACE_S = 0.3  # between a lost connection and the result of a call that had sent everything before it
_MAX_UNSENT_BYTES = 32_000_000  # to an ingress that doesn't read: it hangs, or its network does
_LOST = "the connection between this request's replica and the ingress was lost: send it again"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a stream's events go. `credentials` is PEM: the key and certificate that both ends use."""

    host: str
    port: int
    credentials: str = field(repr=False)
    stream: int


class Inbox:
    """The ingress's end: listens, and gives each stream's events to its writer. Used on one event loop."""

    def __init__(self, host: str) -> None:
        """`host` is the address of the cluster's interface, on which replicas reach this process."""
        self._host = host
        self._credentials = new_credentials()
        self._server: asyncio.Server | None = None
        self._starting = asyncio.Lock()
        self._streams: dict[int, IncomingStream] = {}
        self._receivers: set[_Receiver] = set()
        self._next_stream = 0

    @property
    def num_open(self) -> int:
        return len(self._streams)

    async def start(self) -> None:
        """Listen on a free port. Idempotent."""
        async with self._starting:
            if self._server is None:
                self._server = await asyncio.get_running_loop().create_server(
                    lambda: _Receiver(self._streams, self._receivers),
                    self._host,
                    0,
                    ssl=tls_context(ssl.PROTOCOL_TLS_SERVER, self._credentials),
                    ssl_handshake_timeout=_CONNECT_TIMEOUT_S,
                )

    @contextmanager
    def open(self, write: Write) -> Iterator["IncomingStream"]:
        """A stream whose events go to `write`, until the block ends."""
        assert self._server is not None, "start() comes first"
        port = self._server.sockets[0].getsockname()[1]
        self._next_stream += 1
        address = Address(self._host, port, self._credentials, self._next_stream)
        stream = IncomingStream(address, write)
        self._streams[address.stream] = stream
        try:
            yield stream
        finally:
            del self._streams[address.stream]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for receiver in list(self._receivers):
                receiver.transport.abort()


class IncomingStream:
    """One answer's events, as they arrive.

    `on_broken` is called once if it can't go on, because its connection was lost or the writer raised `error`.
    """

    def __init__(self, address: Address, write: Write) -> None:
        self.address = address
        self.error: Exception | None = None
        self.connection: object = None  # that brings it, known from the first event on
        self.on_broken: Callable[[], None] = lambda: None
        self._write = write
        self._num_writes = 0
        self._progress: asyncio.Event | None = None

    def receive(self, events: bytes) -> None:
        if self.error is not None:
            return
        self._num_writes += 1
        try:
            self._write(events)
        except Exception as exc:  # noqa: BLE001 -- whatever the reader's fault is, it ends this stream alone
            self.fail(exc)
        if self._progress:
            self._progress.set()

    def fail(self, error: Exception) -> None:
        """The stream can't go on. The first error counts."""
        if self.error is None:
            self.error = error
            # Later, so that a fault of the callback doesn't break the connection.
            asyncio.get_running_loop().call_soon(self.on_broken)
            if self._progress:
                self._progress.set()

    async def completed(self, num_writes: int) -> None:
        """Return when all of them have arrived. Raises what broke the stream, or `ReplicaDied`."""
        while self._num_writes < num_writes and self.error is None:
            before, self._progress = self._num_writes, asyncio.Event()
            try:
                async with asyncio.timeout(_LAST_EVENTS_TIMEOUT_S):
                    await self._progress.wait()
            except TimeoutError:
                await asyncio.sleep(0)  # what came while this process was held up is read first
                await asyncio.sleep(0)
                if self._num_writes == before:
                    self.fail(ReplicaDied(_LOST, None, 1.0))
        if self.error is None and self._num_writes > num_writes:
            self.fail(ReplicaDied(_LOST, None, 1.0))
        if self.error is not None:
            raise self.error


class _Receiver(asyncio.Protocol):
    """A replica's connection: cuts its bytes into events and hands them out."""

    transport: asyncio.Transport

    def __init__(self, streams: dict[int, IncomingStream], connected: "set[_Receiver]") -> None:
        self._streams = streams
        self._connected = connected
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's isn't derived from it
        self._connected.add(self)
        _notice_loss(transport)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        position, end = 0, len(data)
        while end - position >= _HEADER.size:
            identity, size = _HEADER.unpack_from(data, position)
            start = position + _HEADER.size
            if start + size > end:
                break
            position = start + size
            if stream := self._streams.get(identity):  # absent: its client has left
                if stream.connection not in (None, self):  # Ray sent the call again, to another replica
                    stream.fail(ReplicaDied(_LOST, None, 1.0))
                stream.connection = self
                stream.receive(data[start:position])
        self._rest = data[position:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._connected.discard(self)
        for identity, stream in self._streams.items():
            if stream.connection is self:
                asyncio.get_running_loop().call_later(_RESULT_GRACE_S, self._fail, identity, stream)

    def _fail(self, identity: int, stream: IncomingStream) -> None:
        if self._streams.get(identity) is stream:
            stream.fail(ReplicaDied(_LOST, None, 1.0))


class Outlets:
    """The replica's end: one connection to each ingress that has sent it a request. Used on one event loop."""

    def __init__(self) -> None:
        self._connections: dict[tuple[str, int, str], asyncio.Task[_Sender]] = {}

    async def open(self, address: Address) -> "Outlet":
        """An outlet for this stream. Raises `ReplicaDied` where the ingress can't be reached."""
        key = (address.host, address.port, address.credentials)
        connecting = self._connections.get(key)
        if connecting is None or (connecting.done() and not _is_usable(connecting)):
            connecting = self._connections[key] = asyncio.create_task(_connected(address))
        try:
            sender = await asyncio.shield(connecting)
        except (OSError, TimeoutError) as exc:
            logger.error(
                "no side stream to the ingress at %s:%d (%r): open that way, or set the ingress's stream_host",
                address.host, address.port, exc,
            )  # fmt: skip
            unreached = f"its replica couldn't reach the ingress at {address.host}:{address.port}: send it again"
            raise ReplicaDied(unreached, None, 1.0) from exc
        for other in [k for k, task in self._connections.items() if task.done() and not _is_usable(task)]:
            del self._connections[other]  # ingresses that are gone
        return Outlet(sender, address.stream)

    def close(self) -> None:
        for connecting in self._connections.values():
            if connecting.done() and _is_usable(connecting):
                connecting.result().close()


class Outlet:
    """One answer's way out. `lost` is done, with an error, when its connection is lost."""

    __slots__ = ("_sender", "_stream", "lost")

    def __init__(self, sender: "_Sender", stream: int) -> None:
        self._sender = sender
        self._stream = stream
        self.lost = sender.lost

    def write(self, events: bytes) -> None:
        self._sender.write(self._stream, events)


class _Sender(asyncio.Protocol):
    """A connection to one ingress. What is written in one turn of the event loop, an engine's step, goes as one."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._pieces: list[bytes] = []
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        _notice_loss(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_exception(ReplicaDied(_LOST, None, 1.0))
            self.lost.exception()  # seen: nobody may be waiting

    def write(self, stream: int, events: bytes) -> None:
        if not self._pieces:
            self._loop.call_soon(self._flush)
        self._pieces += (_HEADER.pack(stream, len(events)), events)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        data = b"".join(self._pieces)
        self._pieces.clear()
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        if self._transport.get_write_buffer_size() > _MAX_UNSENT_BYTES:
            self._transport.abort()


def _notice_loss(transport: asyncio.BaseTransport) -> None:
    """Let the kernel probe after some seconds of silence, because a vanished node closes nothing."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 5000)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _is_usable(connecting: "asyncio.Task[_Sender]") -> bool:
    if connecting.cancelled() or connecting.exception() is not None:
        return False
    return not connecting.result().lost.done()


async def _connected(address: Address) -> _Sender:
    async with asyncio.timeout(_CONNECT_TIMEOUT_S):
        _, sender = await asyncio.get_running_loop().create_connection(
            _Sender,
            address.host,
            address.port,
            ssl=tls_context(ssl.PROTOCOL_TLS_CLIENT, address.credentials),
            server_hostname="",
        )
    return sender

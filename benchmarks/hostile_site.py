"""A network of its own in which every address leads to this process, and the strangers' servers in it.

The process runs itself again in new Linux namespaces (`unshare`) with a loopback device and nothing else: no packet
can leave, every address, public or not, is this machine's, and all processes started there end with the first. So a
server can be sent to any address, and what it connects to is seen. Knows nothing of the servers under test.
"""

import asyncio
import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.hostile_cases import BAD, GOOD
from tests.images.test_fetch import IMAGE
from tests.images.test_hostile_urls import Behaviour

_INSIDE = "HOSTILE_BENCH_INSIDE"  # in the environment once the process runs in its own network
_UNSHARE = ("unshare", "--map-root-user", "--fork", "--kill-child", "--pid", "--mount-proc", "--net", "--mount")
_ROUTES = (
    "link set lo up",
    "route add local 0.0.0.0/0 dev lo src 127.0.0.1",
    "-6 route add local ::/0 dev lo",
)
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
_MISSING = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_LOOP = b"HTTP/1.1 302 Found\r\nConnection: close\r\nContent-Length: 0\r\nLocation: /loop/%s1\r\n\r\n"


def enter_own_network(module: str) -> None:
    """Return in the own network; where this process isn't there yet, it becomes one that is."""
    if os.environ.get(_INSIDE):
        return
    if not (shutil.which("unshare") and shutil.which("ip")):
        sys.exit(
            "this needs Linux with `unshare` (util-linux) and `ip` (iproute2), so that nothing can leave the machine"
        )
    words = (*_UNSHARE, sys.executable, "-m", module, *sys.argv[1:])
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    os.execvpe(words[0], words, kept | {_INSIDE: "1"})


def seal(hosts: Mapping[str, Sequence[str]]) -> None:
    """Lead every address here, and the names where they are to lead; other names are unknown at once."""
    devices = [name for _, name in socket.if_nameindex()]
    assert devices == ["lo"], f"this network has a way out: {devices}"
    for words in _ROUTES:
        subprocess.run(["ip", *words.split()], check=True)
    lines = [f"{address} {name}\n" for name, addresses in hosts.items() for address in addresses]
    _put_over(Path("/etc/hosts"), "".join(lines))
    _put_over(Path("/etc/resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    _put_over(Path("/etc/nsswitch.conf"), "hosts: files dns\n")


def _put_over(path: Path, text: str) -> None:
    """In this mount namespace alone."""
    with tempfile.NamedTemporaryFile("w", delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    if path.exists():
        subprocess.run(["mount", "--bind", file.name, str(path.resolve())], check=True)
    os.unlink(file.name)


@dataclass(slots=True)
class Listener:
    """Of one case. `reached`: the addresses at which it was connected to, the two strangers' own left out."""

    port: int
    reached: set[str] = field(default_factory=set)


@asynccontextmanager
async def listening(behaviour: Behaviour | None = None, port: int = 0) -> AsyncIterator[Listener]:
    """A port of every address. At `BAD` it behaves as the case says; at the others it has an image."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here = _address(writer)
        if here not in (GOOD, BAD):
            listener.reached.add(here)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
            answer = behaviour(writer, listener.port) if behaviour and here == BAD else _site(head, writer)
            answering = asyncio.create_task(_quietly(answer))
            leaving = asyncio.create_task(_until_it_leaves(reader))
            tasks.update((answering, leaving))
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            answering.cancel()
            leaving.cancel()
        writer.close()

    server = await asyncio.start_server(handle, sock=_everywhere(port))
    listener = Listener(server.sockets[0].getsockname()[1])
    if behaviour:
        behaviour = replace(behaviour, start=behaviour.start.replace(b"PORT", b"%d" % listener.port))
    try:
        yield listener
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _everywhere(port: int) -> socket.socket:
    made = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    made.setblocking(False)
    return made


def _address(writer: asyncio.StreamWriter) -> str:
    address = ipaddress.ip_address(writer.get_extra_info("sockname")[0].partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


async def _site(head: bytes, writer: asyncio.StreamWriter) -> None:
    path = head.split(b" ")[1] if head.count(b" ") > 1 else b""
    if path.startswith(b"/loop/"):
        writer.write(_LOOP % path.removeprefix(b"/loop/"))
    elif path.startswith(b"/nothing"):
        writer.write(_MISSING)
    else:
        writer.write(_OK % len(IMAGE) + IMAGE)
    await writer.drain()


async def _quietly(answer: Awaitable[None]) -> None:
    with suppress(ConnectionError):
        await answer


async def _until_it_leaves(reader: asyncio.StreamReader) -> None:
    with suppress(ConnectionError):
        while await reader.read(65536):
            pass

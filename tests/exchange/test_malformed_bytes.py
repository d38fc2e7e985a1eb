"""Malformed HTTP, byte by byte on a bare socket: refused or hung up on, never answered for, and it serves on.

Much of it never reaches our code: the HTTP server refuses it, in plain words of its own.
"""

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.dialects.test_malformed import OUR_INSIDES, check_serves_on
from tests.malformed_captions import CAPTIONS, END, UPLOAD
from tests.malformed_json import CHAT
from tests.own_lane import MAX_BODY_BYTES, as_bytes, bearer, echo, own_lane

KEY = b"Authorization: Bearer sa-all\r\n"
HEAD = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: x\r\n" + KEY
GOOD = json.dumps(echo("hi")).encode()
REQUEST = HEAD + b"Content-Length: %d\r\n\r\n" % len(GOOD) + GOOD
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SOCKET_TIMEOUT_S = 30.0

# What the server refuses by itself.
NO_HTTP: dict[str, bytes] = {
    "words": b"hello there\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
    "NUL bytes": b"\0" * 100,
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "an unknown method": b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method in lower case": b"get /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "no path": b"GET HTTP/1.1\r\nHost: x\r\n\r\n",
    "another version": b"GET /health HTTP/9.9\r\nHost: x\r\n\r\n",
    "no version": b"GET /health FTP/1.1\r\nHost: x\r\n\r\n",
    "a header without a colon": HEAD + b"nonsense\r\n\r\n",
    "a header without a name": HEAD + b": value\r\n\r\n",
    "a space in a header's name": HEAD + b"Content Length: 5\r\n\r\n",
    "a NUL in a header": HEAD + b"X-A: a\0b\r\n\r\n",
    "a bare line end in a header": HEAD + b"X-A: a\rb\r\n\r\n",
    "a length that is no number": HEAD + b"Content-Length: five\r\n\r\n",
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\n",
    "a length with a sign": HEAD + b"Content-Length: +5\r\n\r\nhello",
    "a length beyond 64 bits": HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length and chunks": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk of no size": CHUNKED + b"zz\r\n{}\r\n0\r\n\r\n",
    "a negative chunk": CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n",
    "a chunk beyond 64 bits": CHUNKED + b"ffffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
    "a chunk longer than it says": CHUNKED + b"2\r\n{}{}{}\r\n0\r\n\r\n",
    "no ASCII in the path": "GET /v1/mödels HTTP/1.1\r\nHost: x\r\n\r\n".encode("latin-1"),
}

# What ends before it is whole. The client closes its side, and is owed nothing.
CUT: dict[str, bytes] = {
    "nothing": b"",
    "half a request line": b"POST /v1/ch",
    "half a header": HEAD + b"Content-Le",
    "no body": HEAD + b"Content-Length: 100\r\n\r\n",
    "half a body": HEAD + b"Content-Length: 100\r\n\r\n" + GOOD[:10],
    "half a chunk": CHUNKED + b"ff\r\n{}",
    "no last chunk": CHUNKED + b"2\r\n{}\r\n",
    "half an upload": b"POST " + CAPTIONS.encode() + b" HTTP/1.1\r\nHost: x\r\n" + KEY
    + b"Content-Type: multipart/form-data; boundary=edge\r\nContent-Length: 5000\r\n\r\n" + UPLOAD[:90],
}  # fmt: skip


def ask(url: httpx.URL, data: bytes, *, closes: bool = False) -> bytes:
    """What comes back until the server hangs up or is silent for a second; `closes` our side after the data."""
    with socket.create_connection((url.host, url.port or 0), timeout=SOCKET_TIMEOUT_S) as connection:
        with suppress(OSError):  # it may refuse and hang up before all is sent
            connection.sendall(data)
            if closes:
                connection.shutdown(socket.SHUT_WR)
        return read(connection)


def read(connection: socket.socket, silence_s: float = 1.0) -> bytes:
    connection.settimeout(SOCKET_TIMEOUT_S)
    answer = b""
    with suppress(TimeoutError, ConnectionResetError):
        while piece := connection.recv(65536):
            answer += piece
            connection.settimeout(silence_s)
    return answer


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.URL]:
    with own_lane(tmp_path_factory.mktemp("lane")) as url:
        yield url


@pytest.fixture(autouse=True)
def _serves_on(url: httpx.URL) -> Iterator[None]:
    yield
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        check_serves_on(client)


@pytest.mark.parametrize("data", NO_HTTP.values(), ids=list(NO_HTTP))
def test_what_is_no_http_is_refused(url: httpx.URL, data: bytes) -> None:
    answer = ask(url, data)
    assert answer.startswith(b"HTTP/1.1 400 "), answer
    assert answer.count(b"HTTP/1.1") == 1
    assert not OUR_INSIDES.search(answer.decode().partition("\r\n\r\n")[2])


@pytest.mark.parametrize("data", CUT.values(), ids=list(CUT))
def test_what_is_cut_short_gets_no_answer(url: httpx.URL, data: bytes) -> None:
    assert b" 200 " not in ask(url, data, closes=True)


def test_two_requests_at_once_are_answered_one_after_the_other(url: httpx.URL) -> None:
    bad = HEAD + b"Content-Length: 2\r\n\r\n{}"
    answer = ask(url, REQUEST + bad + REQUEST)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200", b"400", b"200"]


def test_what_follows_a_good_request_is_refused_alone(url: httpx.URL) -> None:
    answer = ask(url, REQUEST + b"nonsense\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 400"))


def test_good_chunks_are_a_good_body(url: httpx.URL) -> None:
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD)
    assert ask(url, CHUNKED + body + b"0\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_chunks_beyond_the_limit_are_refused(url: httpx.URL) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    answer = ask(url, CHUNKED + chunk * (MAX_BODY_BYTES // 0x10000 + 2))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"body_too_large" in answer


def test_a_declared_length_beyond_the_limit_is_refused_before_the_body_comes(url: httpx.URL) -> None:
    answer = ask(url, HEAD + b"Content-Length: 999999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")


def test_an_expected_continue_is_given(url: httpx.URL) -> None:
    head = HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(GOOD)
    with socket.create_connection((url.host, url.port or 0), timeout=SOCKET_TIMEOUT_S) as connection:
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(GOOD)
        assert read(connection).startswith(b"HTTP/1.1 200")


def test_a_slow_body_is_good_and_one_that_never_comes_is_late(url: httpx.URL) -> None:
    with socket.create_connection((url.host, url.port or 0), timeout=SOCKET_TIMEOUT_S) as connection:
        connection.sendall(REQUEST[:-30])
        for byte in REQUEST[-30:]:
            time.sleep(0.01)
            connection.sendall(bytes([byte]))
        assert read(connection).startswith(b"HTTP/1.1 200")
    late = HEAD + b"X-Request-Timeout: 0.1\r\nContent-Length: 100\r\n\r\n{"
    answer = ask(url, late)
    assert answer.startswith(b"HTTP/1.1 504")
    assert b"deadline_exceeded" in answer


def test_who_sends_a_body_drop_by_drop_loses_its_place(tmp_path: Path) -> None:
    with own_lane(tmp_path, body_timeout_s=0.2) as url:
        answer = ask(url, HEAD + b"Content-Length: 100\r\n\r\n{")
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"body_too_slow" in answer
        form = (
            HEAD.replace(CHAT.encode(), CAPTIONS.encode()) + b"Content-Type: multipart/form-data; boundary=edge\r\n"
        )
        assert b"body_too_slow" in ask(url, form + b"Content-Length: 9\r\n\r\n-")
        assert ask(url, REQUEST).startswith(b"HTTP/1.1 200")


def test_a_client_that_closes_its_side_leaves(url: httpx.URL) -> None:
    """As one that is gone: HTTP/1.1 servers can't tell. No answer is owed."""
    ask(url, REQUEST, closes=True)


@pytest.mark.parametrize("sent", ["a b", "a;b", "a" * 129, "", "é", '"a"', "a\tb", "<script>", "../a"])
def test_an_odd_id_is_not_taken_over(url: httpx.URL, sent: str) -> None:
    headers = as_bytes({**bearer("all"), "x-request-id": sent.encode("latin-1")})
    answer = httpx.post(f"{url}{CHAT}", json=echo("hi"), headers=headers, trust_env=False)
    assert answer.status_code == 200
    own = answer.json()["id"].removeprefix("chatcmpl-")
    assert own != sent
    assert own.isalnum()
    assert answer.headers["x-request-id"] == own


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Starlette leaves it to Python
def test_a_form_without_an_end_is_read_as_far_as_it_goes(url: httpx.URL) -> None:
    for body in (UPLOAD, UPLOAD + END[:5], UPLOAD + END + b"beyond the end"):
        head = (
            b"POST "
            + CAPTIONS.encode()
            + b" HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=edge\r\n"
        )
        answer = ask(url, head + KEY + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert answer.split()[1] in (b"200", b"400")

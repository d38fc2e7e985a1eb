"""The client of our own API: event streams in any pieces, addresses, keys, and errors that another server wrote."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from serve_app.client.api import ApiClient, error_of, normalized_url, parse_retry_after, shown_url
from serve_app.client.errors import BrokenOff, ServiceError
from serve_app.errors import ConfigError
from tests.own_answers import chat_event

SECRET = "sa-TheKeyThatNobodyMaySee"


def client_of(body: bytes, size: int = 1, media_type: str = "text/event-stream") -> ApiClient:
    """A client whose service answers every request with `body`, in pieces of `size` bytes."""

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), size):
            yield body[start : start + size]

    client = ApiClient("http://h")
    answer = httpx.MockTransport(
        lambda request: httpx.Response(200, headers={"content-type": media_type}, content=pieces())
    )
    client._http = httpx.AsyncClient(base_url="http://h", transport=answer)
    return client


async def text_of(client: ApiClient) -> str:
    async with client:
        return "".join([delta.text async for delta in client.stream_chat({})])


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
async def test_events_arrive_in_any_pieces(end: str, size: int) -> None:
    """Lines end with CR LF, LF or CR and nothing else: U+2028 and U+0085 may stand inside an event's JSON."""
    event = json.loads(chat_event("{\u2028\u0085\u00e9}"))
    first, second = json.dumps(event, ensure_ascii=False).split(", ", 1)
    lines = [
        "\ufeff: hi", f"data: {first},", f"data:{second}", "", ": alive", "", "id: 1",
        f"data: {chat_event('b')}", "", "event: x", "", "data", "", "data: [DONE]", "", "data: torn",
    ]  # fmt: skip
    assert await text_of(client_of(end.join(lines).encode(), size)) == "{\u2028\u0085\u00e9}b"


@pytest.mark.parametrize("end", ["", "data: [DONE]", "data: [DONE]\n"])
async def test_a_stream_without_its_end_is_an_error(end: str) -> None:
    with pytest.raises(BrokenOff, match="broke off before its end"):
        await text_of(client_of(f"data: {chat_event('a')}\n\n{end}".encode()))


async def test_another_servers_page_is_no_stream() -> None:
    with pytest.raises(ServiceError, match="doesn't answer like a serve_app service"):
        await text_of(client_of(b"<h1>Welcome</h1>", media_type="text/html"))


@pytest.mark.parametrize("event", ["not json", "5", '{"choices": 5}', '{"choices": [{"delta": 1}]}', "{}"])
async def test_another_servers_events_are_named(event: str) -> None:
    with pytest.raises(ServiceError, match="isn't one of a chat"):
        await text_of(client_of(f"data: {event}\n\n".encode()))


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("http://h:1/", "http://h:1"),
        ("http://h:1/v1/", "http://h:1"),
        ("https://h/models/m/v1", "https://h/models/m"),
        (" http://[::1]:8000 ", "http://[::1]:8000"),
    ],
)
def test_addresses(url: str, normal: str) -> None:
    assert normalized_url(url) == normal


@pytest.mark.parametrize("url", ["", "h:8000", "ftp://h", "http://", "http://h:port", "http://h:99999999"])
def test_no_addresses(url: str) -> None:
    with pytest.raises(ConfigError, match="isn't an address"):
        normalized_url(url)


def test_retry_after() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < (parse_retry_after(date) or 0) <= 90
    values = [None, "", "2", "1.5", "-3", "nan", "inf", "soon", "Wed, 21 Oct 2015 07:28:00 GMT"]
    assert [parse_retry_after(value) for value in values] == [None, None, 2, 1.5, 0, None, None, None, 0]


def test_secrets_stay_out_of_messages() -> None:
    with pytest.raises(ConfigError) as raised:
        ApiClient("http://h", f"{SECRET}\nx")
    assert SECRET not in str(raised.value)
    assert shown_url("http://me:secret@h/x") == "http://h/x"
    client = ApiClient("http://h", SECRET)
    assert SECRET not in repr(client) + repr(client._http.headers)
    request = httpx.Request("GET", "http://h", headers={"authorization": f"Bearer {SECRET}"})
    error = error_of(httpx.Response(401, text="no", request=request))
    assert SECRET not in repr(error) + error.message


def test_a_foreign_error_is_a_sentence() -> None:
    request = httpx.Request("GET", "http://me:secret@h/v1/models")
    error = error_of(httpx.Response(502, text="<h1>Bad\n gateway</h1>", request=request))
    assert error.message == "http://h/v1/models answered 502 Bad Gateway: <h1>Bad gateway</h1>"

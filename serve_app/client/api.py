"""A client of the service's own API, for the command line and the playground.

Owns addresses, keys, timeouts, and the sentences for failures: it turns httpx's exceptions and the API's error object
into `ServiceError`. Knows nothing of terminals and pages.
"""

import json
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self
from urllib.request import getproxies

import httpx
from httpx_sse import EventSource, SSEError

from serve_app.client.errors import BrokenOff, ServiceError, Unreachable
from serve_app.client.transport import Transport
from serve_app.errors import ConfigError

# A little above the service's own request_timeout_s (300), so that its 504 arrives before we hang up.
_READ_TIMEOUT_S = 330.0
_TIMEOUT = httpx.Timeout(60.0, connect=10.0, read=_READ_TIMEOUT_S, pool=None)
_NUM_IDLE_CONNECTIONS = 32


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed answer. The last one is the end: it has no text but the other fields."""

    text: str = ""
    is_end: bool = False
    finish_reason: str | None = None
    num_tokens: int | None = None
    caption: str | None = None
    prompt: str | None = None


class ApiClient:
    """The service at `url`. Its methods raise `ServiceError`; ending a stream early hangs up on the service.

    Every request carries `api_key`, or the `authorization` header that a call names. Raises `ConfigError` for a bad
    address or key.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        num_connections: int | None = None,
        may_use_proxy: bool = True,
    ) -> None:
        self.url = normalized_url(url)
        headers = {"user-agent": "serve-app"}
        if key := (api_key or "").strip():
            if not key.isascii() or not key.isprintable():
                raise ConfigError(
                    "The API key holds characters that no header can carry: set --api-key or SERVE_APP_API_KEY again"
                )
            headers["authorization"] = f"Bearer {key}"
        # A proxy from the environment can't reach this machine's own loopback address.
        is_local = httpx.URL(self.url).host in ("localhost", "127.0.0.1", "::1")
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=_TIMEOUT,
            limits=httpx.Limits(
                max_connections=num_connections, max_keepalive_connections=num_connections or _NUM_IDLE_CONNECTIONS
            ),
            trust_env=may_use_proxy and not is_local,
            transport=None if may_use_proxy and not is_local and getproxies() else Transport(num_connections),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def get(
        self, path: str, query: dict[str, str] | None = None, authorization: str | None = None
    ) -> dict[str, Any]:
        """The JSON object at `path`."""
        with self._translated_errors():
            response = await self._http.get(path, params=query, headers=_headers(authorization))
        return _object_of(response)

    async def caption(
        self,
        fields: dict[str, Any],
        image: bytes | str,
        media_type: str = "application/octet-stream",
        authorization: str | None = None,
    ) -> dict[str, Any]:
        """The answer for an image, which is its bytes or an address that the service fetches."""
        request = _caption_request(fields, image, media_type)
        with self._translated_errors():
            response = await self._http.post("/v1/captions", headers=_headers(authorization), **request)
        return _object_of(response)

    async def captions(self, fields: dict[str, Any], images: Sequence[tuple[bytes, str]]) -> dict[str, Any]:
        """The answer for several images, each its bytes and its media type, in their order."""
        files = [("image", ("image", data, media_type)) for data, media_type in images]
        with self._translated_errors():
            response = await self._http.post("/v1/captions", data=_form(fields), files=files)
        return _object_of(response)

    async def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """The whole answer to a body of `POST /v1/chat/completions`."""
        with self._translated_errors():
            response = await self._http.post("/v1/chat/completions", json=body)
        return _object_of(response)

    async def stream_caption(
        self, fields: dict[str, Any], image: bytes | str, authorization: str | None = None
    ) -> AsyncGenerator[Delta]:
        """The caption of an image, which is its bytes or an address that the service fetches."""
        request = _caption_request(fields | {"stream": True}, image)
        async with aclosing(self._events("/v1/captions", authorization, request)) as events:
            async for event in events:
                if event["object"] == "caption.chunk":
                    yield Delta(event["delta"])
                elif event["object"] == "caption":
                    num_tokens = event["usage"]["completion_tokens"]
                    yield Delta("", True, event["finish_reason"], num_tokens, event["caption"], event["prompt"])

    async def stream_chat(self, body: dict[str, Any], authorization: str | None = None) -> AsyncGenerator[Delta]:
        """The answer to a body of `POST /v1/chat/completions`."""
        request = {"json": body | {"stream": True}}
        finish_reason = num_tokens = None
        async with aclosing(self._events("/v1/chat/completions", authorization, request)) as events:
            async for event in events:
                try:
                    choice = event["choices"][0] if event["choices"] else {}
                    text = choice.get("delta", {}).get("content")
                    finish_reason = choice.get("finish_reason") or finish_reason
                    num_tokens = event["usage"]["completion_tokens"] if event.get("usage") else num_tokens
                except (KeyError, TypeError, AttributeError) as exc:
                    raise _foreign_event() from exc
                if text:
                    yield Delta(text)
        yield Delta("", True, finish_reason, num_tokens)

    async def _events(
        self, path: str, authorization: str | None, request: dict[str, Any]
    ) -> AsyncGenerator[dict[str, Any]]:
        """Each event's JSON up to `[DONE]`. Raises `ServiceError` for an event that is an error."""
        async with (
            self._stream(path, authorization, request) as response,
            aclosing(EventSource(response).aiter_sse()) as events,
        ):
            async for event in events:
                if event.data == "[DONE]":
                    return
                if event.data:  # httpx-sse also yields events without data, which the standard drops
                    yield _event_of(event.data)
        raise BrokenOff("The answer broke off before its end: ask again, or look at the service's log")

    @asynccontextmanager
    async def _stream(
        self, path: str, authorization: str | None, request: dict[str, Any]
    ) -> AsyncIterator[httpx.Response]:
        with self._translated_errors():
            async with self._http.stream("POST", path, headers=_headers(authorization), **request) as response:
                if not response.is_success:
                    await response.aread()
                    raise error_of(response)
                try:
                    yield response
                except SSEError as exc:
                    raise _foreign(response) from exc

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        address = shown_url(self.url)
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            is_plain = not str(exc) or "refused" in str(exc) or "Connect call failed" in str(exc)
            reason = "" if is_plain else f" ({exc})"
            raise Unreachable(
                f"No service answers at {address}{reason}: start one with `serve-app up` or pass --url"
            ) from exc
        except httpx.TimeoutException as exc:
            raise BrokenOff(f"The service at {address} took longer than {_READ_TIMEOUT_S:.0f} s: try again") from exc
        except (httpx.TransportError, httpx.DecodingError) as exc:
            reason = str(exc) or type(exc).__name__
            raise BrokenOff(
                f"The connection to {address} broke ({reason}): try again, or look at the service's log"
            ) from exc


def normalized_url(url: str) -> str:
    """`url` without a trailing slash or `/v1`. Raises `ConfigError` where it isn't an http(s) address."""
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL as exc:
        raise ConfigError(f"'{url}' isn't an address ({exc}): write --url like http://127.0.0.1:8000") from exc
    is_port = parsed.port is None or 0 < parsed.port < 65536
    if parsed.scheme not in ("http", "https") or not parsed.host or not is_port:
        raise ConfigError(f"'{url}' isn't an address: write --url like http://127.0.0.1:8000")
    path = parsed.path.rstrip("/").removesuffix("/v1")
    return str(parsed.copy_with(path=path or "/", query=None, fragment=None)).rstrip("/")


def shown_url(url: str) -> str:
    """The address as messages may show it, without a user name or password."""
    return re.sub(r"//[^/@]*@", "//", url)


def error_of(response: httpx.Response) -> ServiceError:
    """The error of a failed response that has been read, also where another server wrote it."""
    retry_after_s = parse_retry_after(response.headers.get("retry-after"))
    try:
        error = response.json()["error"]
        code, api_message, param = error.get("code") or "", error["message"], error.get("param")
        message = api_message
    except (ValueError, KeyError, TypeError, AttributeError):
        code, api_message, param = "", None, None
        message = _plain_sentence(response)
        if response.status_code == 429 and retry_after_s is not None:
            message = f"{message} (try again in {retry_after_s:.0f} s)"  # our own service's sentence says so itself
    return ServiceError(
        f"{message}{_key_hint(response)}",
        api_message=api_message,
        status=response.status_code,
        code=str(code),
        param=param,
        retry_after_s=retry_after_s,
    )


def parse_retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a number or an HTTP date; None where the header says nothing usable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        date = date if date.tzinfo else date.replace(tzinfo=UTC)
        seconds = (date - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _object_of(response: httpx.Response) -> dict[str, Any]:
    if not response.is_success:
        raise error_of(response)
    try:
        value = response.json()
    except ValueError as exc:
        raise _foreign(response) from exc
    if not isinstance(value, dict):
        raise _foreign(response)
    return value


def _event_of(data: str) -> dict[str, Any]:
    try:
        event: dict[str, Any] = json.loads(data)
        error = event.get("error")
        message = error["message"] if error else None
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise _foreign_event() from exc
    if message is not None:
        raise ServiceError(f"The answer failed: {message}", api_message=message)
    return event


def _foreign_event() -> ServiceError:
    return ServiceError("The service sent an event that isn't one of a chat: check --url")


def _foreign(response: httpx.Response) -> ServiceError:
    address = shown_url(str(response.url))
    return ServiceError(
        f"{address} doesn't answer like a serve_app service: check --url", status=response.status_code
    )


def _plain_sentence(response: httpx.Response) -> str:
    address = shown_url(str(response.url))
    if response.has_redirect_location:
        return f"{address} redirects to {response.headers['location']}: pass the address it leads to as --url"
    text = " ".join(response.text.split())[:200]
    sentence = f"{address} answered {response.status_code} {response.reason_phrase}".rstrip()
    if response.status_code in (404, 405):
        return f"{sentence}: is --url the address of a serve_app service?"
    return f"{sentence}: {text}" if text else sentence


def _key_hint(response: httpx.Response) -> str:
    """Where the API key comes from, if the failure is about it: the service can't know that."""
    if response.status_code not in (401, 403):
        return ""
    if "authorization" in response.request.headers:
        return " (the API key comes from --api-key or SERVE_APP_API_KEY)"
    return " (no API key was sent: pass one with --api-key or SERVE_APP_API_KEY)"


def _headers(authorization: str | None) -> dict[str, str]:
    return {"authorization": authorization} if authorization else {}


def _caption_request(
    fields: dict[str, Any], image: bytes | str, media_type: str = "application/octet-stream"
) -> dict[str, Any]:
    """httpx's arguments: a form for an image's bytes, which get no name of ours, and JSON for its address."""
    if isinstance(image, bytes):
        return {"data": _form(fields), "files": {"image": ("image", image, media_type)}}
    return {"json": fields | {"image": {"url": image}}}


def _form(fields: dict[str, Any]) -> dict[str, Any]:
    """A multipart form's spelling of JSON values. A list becomes a field that comes several times."""
    return {name: value if isinstance(value, str | list) else json.dumps(value) for name, value in fields.items()}

"""Talking to the service: the address, the key, and what each way of failing means.

The one place that knows httpx's exceptions and the API's error object; commands see `Unreachable`,
`Dropped` and `ApiError`.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from serve_app.cli.errors import FAILED, USAGE, ApiError, CliError, Dropped, Unreachable

# a little above the service's own request_timeout_s (300), so that its 504 arrives before we hang up
READ_TIMEOUT_S = 330.0
TIMEOUT = httpx.Timeout(60.0, connect=10.0, read=READ_TIMEOUT_S, pool=None)


def normalized_url(url: str) -> str:
    """`url` without a trailing slash or `/v1`. Raises `CliError` where it isn't an http(s) address."""
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL as exc:
        raise CliError(f"'{url}' isn't an address ({exc}): write --url like http://127.0.0.1:8000", USAGE) from exc
    is_port = parsed.port is None or 0 < parsed.port < 65536
    if parsed.scheme not in ("http", "https") or not parsed.host or not is_port:
        raise CliError(f"'{url}' isn't an address: write --url like http://127.0.0.1:8000", USAGE)
    path = parsed.path.rstrip("/")
    return str(parsed.copy_with(path=path.removesuffix("/v1") or "/", query=None, fragment=None)).rstrip("/")


def shown_url(url: str) -> str:
    """The address as messages may show it: without a user name or password."""
    return re.sub(r"//[^/@]*@", "//", url)


def settings_for(url: str, api_key: str | None = None) -> dict[str, Any]:
    """Keyword arguments of an `httpx.Client` or `AsyncClient` for the service at `url`."""
    base_url = normalized_url(url)
    is_local = httpx.URL(base_url).host in ("localhost", "127.0.0.1", "::1")
    headers = {"user-agent": "serve-app"}
    if key := (api_key or "").strip():
        if not key.isascii() or not key.isprintable():
            raise CliError(
                "The API key holds characters that no header can carry: set --api-key or SERVE_APP_API_KEY again",
                USAGE,
            )
        headers["authorization"] = f"Bearer {key}"
    # a proxy from the environment can't reach this machine's own loopback address
    return {"base_url": base_url, "headers": headers, "timeout": TIMEOUT, "trust_env": not is_local}


def open_client(url: str, api_key: str | None = None) -> httpx.Client:
    """A client whose paths are relative to the service at `url`. Raises `CliError` for a bad address or key."""
    return httpx.Client(**settings_for(url, api_key))


@contextmanager
def translated(url: httpx.URL | str) -> Iterator[None]:
    """httpx's failures inside become `Unreachable` or `Dropped`."""
    address = shown_url(str(url)).rstrip("/")
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
        is_plain = not str(exc) or "refused" in str(exc) or "attempts failed" in str(exc)
        reason = "" if is_plain else f" ({exc})"
        raise Unreachable(
            f"No service answers at {address}{reason}: start one with `serve-app up` or pass --url"
        ) from exc
    except httpx.TimeoutException as exc:
        raise Dropped(f"The service at {address} took longer than {READ_TIMEOUT_S:.0f} s: try again") from exc
    except (httpx.TransportError, httpx.DecodingError) as exc:
        reason = str(exc) or type(exc).__name__
        raise Dropped(
            f"The connection to {address} broke ({reason}): try again, or look at the service's log"
        ) from exc


def get_json(client: httpx.Client, path: str) -> Any:
    """The JSON document at `path`. Raises `Unreachable`, `Dropped` or `ApiError`."""
    with translated(client.base_url):
        response = client.get(path)
    if not response.is_success:
        raise error_of(response)
    return json_of(response)


def json_of(response: httpx.Response) -> dict[str, Any]:
    """The answer's JSON object. Raises `CliError` where something else than this service answered."""
    try:
        value = response.json()
    except ValueError as exc:
        raise _foreign(response) from exc
    if not isinstance(value, dict):
        raise _foreign(response)
    return value


def error_of(response: httpx.Response) -> ApiError:
    """A failed answer, already read, as `ApiError`, with a sentence even where another server wrote it."""
    retry_after_s = parse_retry_after(response.headers.get("retry-after"))
    try:
        error = response.json()["error"]
        code, message, param = error.get("code") or "", error["message"], error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        code, message, param = "", _plain_sentence(response), None
        if response.status_code == 429 and retry_after_s is not None:
            message = f"{message} (try again in {retry_after_s:.0f} s)"  # our own service's sentence says so itself
    return ApiError(response.status_code, str(code), f"{message}{_key_hint(response)}", param, retry_after_s)


def parse_retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a number or an HTTP date; None where the header says nothing usable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
        except ValueError:
            return None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _key_hint(response: httpx.Response) -> str:
    """Where the API key comes from, if the failure is about it: the service can't know that."""
    if response.status_code not in (401, 403):
        return ""
    if "authorization" in response.request.headers:
        return " (the API key comes from --api-key or SERVE_APP_API_KEY)"
    return " (no API key was sent: pass one with --api-key or SERVE_APP_API_KEY)"


def _plain_sentence(response: httpx.Response) -> str:
    address = shown_url(str(response.url))
    if response.has_redirect_location:
        return f"{address} redirects to {response.headers['location']}: pass the address it leads to as --url"
    text = " ".join(response.text.split())[:200]
    sentence = f"{address} answered {response.status_code} {response.reason_phrase}".rstrip()
    if response.status_code in (404, 405):
        return f"{sentence}: is --url the address of a serve_app service?"
    return f"{sentence}: {text}" if text else sentence


def _foreign(response: httpx.Response) -> CliError:
    address = shown_url(str(response.url))
    return CliError(f"{address} doesn't answer like a serve_app service: check --url", FAILED)

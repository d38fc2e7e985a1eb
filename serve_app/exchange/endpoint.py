"""One route of a lane, from a request's arrival to its log line.

Checks the headers' size, the key, the rate and the deadline before the handler runs. Turns a handler's errors into
answers, or into error events if the answer had begun.
"""

import asyncio
import json
import logging
import re
from contextlib import nullcontext

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from serve_app.config.serve_settings import within
from serve_app.errors import (
    DeadlineExceeded,
    HeadersTooLarge,
    InternalError,
    InvalidKey,
    InvalidRequest,
    ModelNotReady,
    Overloaded,
    RequestError,
    ServeAppError,
    ShuttingDown,
)
from serve_app.exchange.dialect import error_headers
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.lane import Lane
from serve_app.exchange.route import Route
from serve_app.images.own_site import require_own_site
from serve_app.metrics.specs import CLIENT_LEFT

logger = logging.getLogger("serve_app")
audit = logging.getLogger("serve_app.audit")

_LAST_WORD_S = 5.0  # past a request's deadline, for its engine and router to raise the error themselves
_BACK_AFTER_S = 5.0  # a guess at when another process serves in this one's place
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_SERVE_TIMEOUT = "x-request-timeout-seconds"  # Ray Serve ends the request after it, whatever the config says
_FAREWELL_S = 5.0  # for an error to reach a client that may not be reading


class Endpoint:
    """An ASGI app that runs one route's handler."""

    def __init__(self, route: Route, lane: Lane) -> None:
        self._route = route
        self._lane = lane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, self._lane, self._route.dialect)
        with exchange.tracker if self._route.is_counted else nullcontext():
            try:
                await self._run(exchange)
            except asyncio.CancelledError:
                if exchange.is_given_up:  # else it is our own, and ends here
                    raise
            finally:  # the request is counted and logged, whatever cancels it and however often
                exchange.close()
                exchange.tracker.outcome(exchange.outcome)
                if self._route.is_counted:
                    exchange.log()

    async def _run(self, exchange: Exchange) -> None:
        """Run the handler. What it raises is the client's answer, and the exchange's outcome."""
        try:
            await self._let_in(exchange)
            with self._lane.running.listed(exchange):
                await self._within_deadline(exchange)
        except ServeAppError as error:
            await self._refused(exchange, exchange.cancellation or error)
        except asyncio.CancelledError:
            if exchange.cancellation is not None:
                await self._refused(exchange, exchange.cancellation)
                return
            # Ray Serve may give a request up after its deadline, as when an engine hangs: then it was late.
            exchange.outcome = DeadlineExceeded.code if exchange.is_given_up and exchange.is_late else CLIENT_LEFT
            raise
        except (ClientDisconnect, ConnectionError):
            exchange.outcome = CLIENT_LEFT
        except Exception:  # the HTTP boundary: a bug is the client's 500 and a traceback in our log
            logger.exception("request %s failed unexpectedly", exchange.id)
            bug = InternalError("the service failed unexpectedly: try again, or report the request's id")
            await self._refused(exchange, bug)

    async def _let_in(self, exchange: Exchange) -> None:
        """Raise what is wrong with the headers, before the body is read."""
        config, headers = self._lane.config, exchange.request.scope["headers"]
        num_bytes = sum(len(name) + len(value) for name, value in headers)
        if num_bytes > config.max_header_bytes:
            raise HeadersTooLarge(
                f"the headers have {num_bytes} bytes and this service takes {config.max_header_bytes}: send fewer"
            )
        if self._route.is_open:
            return
        if self._route.is_counted and self._lane.running.is_closing:
            raise ShuttingDown("the service is shutting down: send it again later, or elsewhere", None, _BACK_AFTER_S)
        exchange.key = self._lane.keys.key_of(_authorization(exchange))
        if exchange.key is None:
            require_own_site(headers, config.allowed_hosts, config.cors_origins)
        exchange.timeout_s = _timeout_s(exchange, config.request_timeout_s)
        if self._route.is_counted and exchange.key is not None:
            exchange.limit_headers = await self._lane.budget.take(exchange.key, requests=1)

    async def _within_deadline(self, exchange: Exchange) -> None:
        """Run the handler. It keeps its own deadline; this one is for a client that never reads, and the like."""
        limit = asyncio.timeout(exchange.timeout_s + _LAST_WORD_S)
        try:
            async with limit:
                await self._route.handler(exchange)
        except TimeoutError as exc:
            if not limit.expired():
                raise
            by = f" by model '{exchange.model}'" if exchange.model else ""
            raise DeadlineExceeded(
                f"not done{by} within {exchange.timeout_s:g} s: ask for less, or read the answer faster"
            ) from exc

    async def _refused(self, exchange: Exchange, error: ServeAppError) -> None:
        """Tell the client, and the audit log if the request itself was refused."""
        is_alone = not exchange.has_client  # then its leaving caused all other errors
        exchange.outcome = CLIENT_LEFT if is_alone and error is not exchange.cancellation else error.code
        if is_alone:
            return
        exchange.close()  # from here on its leaving changes nothing
        if error.model is not None and not exchange.model:
            exchange.set_model(error.model)  # the failure counts as this model's
        try:
            async with asyncio.timeout(_FAREWELL_S):
                await exchange.fail(error, error_headers(error))
        except TimeoutError:
            pass  # nobody reads
        if isinstance(error, RequestError | Overloaded | ModelNotReady):  # not our own failures
            audit.info("%s", json.dumps(_audit_line(exchange, error)))


def _authorization(exchange: Exchange) -> str | None:
    """The header's value. Two of them are refused: they might be two clients' keys."""
    values = exchange.request.headers.getlist("authorization")
    if len(values) > 1:
        raise InvalidKey("the request has more than one Authorization header: send one")
    return values[0] if values else None


def _timeout_s(exchange: Exchange, longest_s: float) -> float:
    """The client's own deadline, `X-Request-Timeout` in seconds, where it gives one; never above the config's."""
    headers = exchange.request.headers
    if _SECONDS.fullmatch(serve_timeout := headers.get(_SERVE_TIMEOUT, "")) and float(serve_timeout):
        longest_s = min(longest_s, within(float(serve_timeout)))
    text = headers.get("x-request-timeout")
    if text is None:
        return longest_s
    seconds = float(text) if _SECONDS.fullmatch(text) else 0.0
    if not seconds:
        raise InvalidRequest("X-Request-Timeout is no time: give seconds above 0, as 30 or 2.5", "X-Request-Timeout")
    return min(seconds, longest_s)


def _audit_line(exchange: Exchange, error: ServeAppError) -> dict[str, object]:
    """What was refused, to whom and why; never a header, a body or a key."""
    return {
        "event": "refused",
        "id": exchange.id,
        "key": exchange.key.name if exchange.key else None,
        "method": exchange.request.method,
        "path": exchange.request.url.path[:200],
        "model": exchange.model or None,
        "status": error.status,
        "code": error.code,
    }

"""What a key's limits allow, held by all processes that serve HTTP together.

One ledger, which lives in the sidecar, keeps the buckets; a process leases from it what a request needs, and for keys
with high limits a second's worth more, so that the next requests cost no message. While the ledger can't be reached
each process counts alone. Knows nothing of HTTP or Ray.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from serve_app.access.keys import Key
from serve_app.access.rates import Rates
from serve_app.errors import RateLimited, Unanswered

logger = logging.getLogger("serve_app")

_LEASE_TIMEOUT_S = 1.0
_LEASE_LASTS_S = 2.0  # an unused lease is then lost to the key: at most a second's worth
_ALONE_S = 5.0  # after a failure, before the ledger is asked again


@dataclass(frozen=True, slots=True)
class Ask:
    """What a process asks for a key: `requests` and `images` to spend, and the `tokens` made since the last time.

    `more_requests` are welcome, and not needed; `counted` are requests that it had for the same HTTP request before.
    """

    key: Key
    requests: int
    images: int
    tokens: int
    more_requests: int = 0
    counted: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """The ledger's answer: everything that was asked for and `more_requests`, or the refusal.

    `headers` tell the client what is left.
    """

    headers: dict[str, str]
    more_requests: int = 0
    refusal: RateLimited | None = None


Lease = Callable[[Ask], Awaitable[Grant]]


class Ledger:
    """The buckets of all keys, shared by all processes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = Rates(clock)

    def grant(self, ask: Ask) -> Grant:
        if ask.tokens:
            self._rates.spend_tokens(ask.key, ask.tokens)
        refusal, more = None, ask.more_requests
        if not more or not self._has_taken(ask, more):
            more = 0
            try:
                self._rates.take(ask.key, ask.requests, ask.images, ask.counted)
            except RateLimited as error:
                refusal = error
        return Grant(self._rates.headers(ask.key), more, refusal)

    def _has_taken(self, ask: Ask, more: int) -> bool:
        try:
            self._rates.take(ask.key, ask.requests + more, ask.images, ask.counted)
        except RateLimited:
            return False
        return True


@dataclass(slots=True)
class _Account:
    """A key in this process: its leased requests, until when they hold, and the tokens not yet reported."""

    headers: dict[str, str] = field(default_factory=dict)
    requests: int = 0
    good_until_s: float = 0.0
    tokens: int = 0
    is_leasing: bool = False  # a lease is being asked for


class Budget:
    """This process's hold on the limits. `lease` asks the ledger; without it, or while it fails, limits are local."""

    def __init__(self, lease: Lease | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease = lease
        self._clock = clock
        self._local = Rates(clock)
        self._accounts: dict[str, _Account] = {}
        self._alone_until_s = float("-inf")
        self._asking: set[asyncio.Task[Grant | None]] = set()

    async def take(self, key: Key, requests: int = 0, images: int = 0, counted: int = 0) -> dict[str, str]:
        """Count what the key asks for now. Returns the headers that show the client what is left, as last known.

        `counted` is what the same HTTP request was counted before. Whoever leaves meanwhile ends nothing: what was
        asked for is counted, and told. Raises `RateLimited`, with the seconds until it would pass.
        """
        if not _is_limited(key):
            return {}
        account = self._accounts.setdefault(key.name, _Account())
        now_s = self._clock()
        leased = account.requests if now_s < account.good_until_s else 0
        if not images and requests <= leased:
            account.requests -= requests
            return account.headers
        used = leased if counted else 0  # of one that is many, what is here already pays a part
        account.requests -= used
        more = _seconds_worth(key) if requests > leased else 0
        ask = Ask(key, requests - used, images, 0, more, counted + used if counted else 0)
        grant = await asyncio.shield(self._in_own_task(self._ask_ledger(ask, account)))
        if grant is None:
            self._local.take(key, requests, images, counted)
            return self._local.headers(key)
        if grant.refusal is not None:
            account.requests += used
            raise grant.refusal
        return grant.headers

    def spend_tokens(self, key: Key, num_tokens: int) -> None:
        """Charge generated tokens. They are reported to the ledger at once, and nobody waits for that."""
        if key.tokens_per_minute is None:
            return
        account = self._accounts.setdefault(key.name, _Account())
        account.tokens += num_tokens
        account.requests = 0  # they may have used the key's tokens up: ask before the next request
        self._local.spend_tokens(key, num_tokens)
        self._in_own_task(self._report(key, account))

    async def _report(self, key: Key, account: _Account) -> Grant | None:
        if not account.tokens:  # another request has reported them
            return None
        return await self._ask_ledger(Ask(key, requests=0, images=0, tokens=0), account)

    def _in_own_task(self, question: Coroutine[Any, Any, Grant | None]) -> "asyncio.Task[Grant | None]":
        """In a task that goes on when the client leaves."""
        task = asyncio.create_task(question)
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        return task

    async def _ask_ledger(self, ask: Ask, account: _Account) -> Grant | None:
        """Ask the ledger, and report all tokens until now. None if it gives no answer."""
        if self._lease is None or self._clock() < self._alone_until_s:
            return None
        # One lease at a time: in a burst each request would lease a second's worth, and together empty the bucket.
        more = 0 if account.is_leasing else ask.more_requests
        account.is_leasing = account.is_leasing or more > 0
        ask = replace(ask, tokens=account.tokens, more_requests=more)
        account.tokens = 0
        try:
            async with asyncio.timeout(_LEASE_TIMEOUT_S):
                grant = await self._lease(ask)
        except (Unanswered, TimeoutError) as exc:
            logger.warning("the limits of keys are counted by each process alone: no ledger (%s)", exc)
            account.tokens += ask.tokens
            self._alone_until_s = self._clock() + _ALONE_S
            return None
        finally:
            if more:
                account.is_leasing = False
        account.headers = grant.headers
        if grant.more_requests:
            now_s = self._clock()
            left = account.requests if now_s < account.good_until_s else 0
            account.requests, account.good_until_s = left + grant.more_requests, now_s + _LEASE_LASTS_S
        return grant


def _is_limited(key: Key) -> bool:
    return (key.requests_per_minute, key.tokens_per_minute, key.images_per_minute) != (None, None, None)


def _seconds_worth(key: Key) -> int:
    """How many requests to lease at once: none of a low limit, because other processes would lose them."""
    return (key.requests_per_minute or 0) // 60 if key.tokens_per_minute is None else 0

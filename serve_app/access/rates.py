"""How much each API key may use in a minute: buckets of requests, tokens and images that refill continuously.

Knows keys and a clock, and nothing of HTTP. A bucket holds one minute's worth, so that a client that was idle may
send that at once. For one thread.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from serve_app.access.keys import Key
from serve_app.errors import RateLimited

Unit = Literal["requests", "tokens", "images"]
UNITS: tuple[Unit, ...] = get_args(Unit)

_MINUTE_S = 60.0
_ROUNDING = (
    1e-9  # of a minute's worth: a client that waits exactly as long as told must not fail by a float's last digit
)


@dataclass(slots=True)
class _Account:
    """How full the buckets of a key are: 1 is a minute's worth, and below 0 is debt.

    Parts and not numbers, so that a limit that changes leaves everybody with the same part of it, and every bucket
    refills at the same pace.
    """

    seen_s: float
    filled: dict[Unit, float] = field(default_factory=lambda: dict.fromkeys(UNITS, 1.0))

    def refill(self, now_s: float) -> None:
        gained = max(0.0, now_s - self.seen_s) / _MINUTE_S
        self.filled = {unit: min(1.0, part + gained) for unit, part in self.filled.items()}
        self.seen_s = now_s

    @property
    def is_full(self) -> bool:
        return min(self.filled.values()) >= 1


class Rates:
    """The limits of all keys in this process. Keeps an account for each key that isn't back at its whole limit.

    Accounts go by the key's name: a client that changes its key keeps its debts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._next_sweep_s = clock() + _MINUTE_S

    @property
    def num_accounts(self) -> int:
        """How many keys have used a part of their limits that hasn't refilled."""
        return len(self._accounts)

    def take(self, key: Key, requests: int, images: int, counted: int = 0) -> None:
        """Count requests and images that the key asks for now.

        Raises `RateLimited` with the seconds after which the same would pass, and counts nothing then. Tokens that
        were answered beyond the limit are waited for here. More requests or images than a whole minute's worth pass
        when nothing else was asked for a minute, and are waited for afterwards; `counted` requests of the same HTTP
        request, that are counted already, are nothing else.
        """
        amounts: dict[Unit, int] = {"requests": requests, "images": images}
        amounts_due = {
            unit: amount for unit, amount in amounts.items() if amount
        }  # a text need not wait for a debt of images
        self._charge(key, {**amounts_due, "tokens": 0}, counted)

    def spend_tokens(self, key: Key, num_tokens: int) -> None:
        """Charge generated tokens, into debt if necessary."""
        account = self._account(key)
        if size := _limit(key, "tokens"):
            account.filled["tokens"] = min(1.0, account.filled["tokens"] - num_tokens / size)

    def headers(self, key: Key) -> dict[str, str]:
        """OpenAI's `x-ratelimit-…` headers: each limit, what is left of it, and the time until it has refilled."""
        account = self._account(key)
        headers = {}
        for unit in UNITS:
            if limit := _limit(key, unit):
                part = account.filled[unit]
                headers[f"x-ratelimit-limit-{unit}"] = str(limit)
                headers[f"x-ratelimit-remaining-{unit}"] = str(max(0, int(part * limit + _ROUNDING * limit)))
                headers[f"x-ratelimit-reset-{unit}"] = duration((1 - part) * _MINUTE_S)
        return headers

    def _charge(self, key: Key, amounts: Mapping[Unit, int], counted: int) -> None:
        """Take all amounts, or none: then raise `RateLimited` for the one that takes longest."""
        account = self._account(key)
        costs = {unit: amount / size for unit, amount in amounts.items() if (size := _limit(key, unit))}
        # A bucket is never more than full: an amount above it passes when it is full, and leaves a debt.
        full = dict.fromkeys(UNITS, 1.0)
        if size := _limit(key, "requests"):
            full["requests"] -= counted / size
        waits_s = {unit: (min(full[unit], cost) - account.filled[unit]) * _MINUTE_S for unit, cost in costs.items()}
        if waits_s and max(waits_s.values()) > _ROUNDING * _MINUTE_S:
            raise _refusal(key, max(waits_s, key=lambda unit: waits_s[unit]), max(waits_s.values()))
        for unit, cost in costs.items():
            account.filled[unit] -= cost

    def _account(self, key: Key) -> _Account:
        """The key's account as it is now."""
        now_s = self._clock()
        if now_s >= self._next_sweep_s:
            self._sweep(now_s)
        account = self._accounts.setdefault(key.name, _Account(now_s))
        account.refill(now_s)
        return account

    def _sweep(self, now_s: float) -> None:
        """Drop full accounts, which are the same as new ones. So accounts of deleted keys go too."""
        self._next_sweep_s = now_s + _MINUTE_S
        for account in self._accounts.values():
            account.refill(now_s)
        self._accounts = {name: account for name, account in self._accounts.items() if not account.is_full}


def duration(seconds: float) -> str:
    """A time as OpenAI's headers write it, after Go's durations: `0s`, `250ms`, `1.5s`, `6m0s`."""
    milliseconds = max(0, round(seconds * 1000))
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    rest = f"{milliseconds / 1000:g}s"
    return f"{minutes}m{rest}" if minutes else rest


def _limit(key: Key, unit: Unit) -> int | None:
    limits: dict[Unit, int | None] = {
        "requests": key.requests_per_minute,
        "tokens": key.tokens_per_minute,
        "images": key.images_per_minute,
    }
    return limits[unit]


def _refusal(key: Key, unit: Unit, wait_s: float) -> RateLimited:
    return RateLimited(
        f"the limit of {_limit(key, unit):,} {unit} a minute is reached for the key '{key.name}': "
        f"try again in {max(wait_s, 0.1):.1f} s",
        None,
        wait_s,
    )

"""When requests may go out: one pause for all workers after a refusal, and an end to waiting.

A refusal (429, 503) or an unreachable service holds every worker back. The pause is what the service asks for, or
grows exponentially. Each worker adds its own jitter, so that they don't return at once.
"""

import asyncio
import random
import time
from collections.abc import Callable

from serve_app.cli.errors import UNREACHABLE, CliError

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
LONGEST_RETRY_AFTER_S = 300.0  # a longer pause ends here, with another try


class Pace:
    """Shared by the workers of one run, on one event loop.

    Raises `CliError` (exit code 3) when nothing answered for `patience_s`, or when everything was refused for
    `busy_patience_s`, both counted from the first failure after a success.
    """

    def __init__(
        self, patience_s: float, busy_patience_s: float, say: Callable[[str], None] = lambda _: None
    ) -> None:
        self._patience_s = patience_s
        self._busy_patience_s = busy_patience_s
        self._say = say
        self._resume_at = 0.0
        self._num_pauses = 0
        self._down_since: float | None = None
        self._busy_since: float | None = None

    async def wait(self) -> None:
        """Return when the next request may go out."""
        while (left_s := self._resume_at - time.monotonic()) > 0:  # noqa: ASYNC110 -- a pause may grow meanwhile
            await asyncio.sleep(left_s + random.uniform(0, min(left_s / 4, 2.0)))

    def succeeded(self) -> None:
        self._num_pauses = 0
        self._down_since = self._busy_since = None

    def refused(self, message: str, retry_after_s: float | None) -> None:
        """The service said 429 or 503, and perhaps when to come back."""
        now = time.monotonic()
        self._down_since = None
        self._busy_since = self._busy_since or now
        if now - self._busy_since > self._busy_patience_s:
            raise CliError(
                f"The service has refused every request for {now - self._busy_since:.0f} s: {message}. "
                "Look at `serve-app status`; the same command continues later", UNREACHABLE,
            )  # fmt: skip
        self._pause(now, retry_after_s, f"The service is busy ({message})")

    def unreachable(self, message: str) -> None:
        """No connection could be made."""
        now = time.monotonic()
        self._down_since = self._down_since or now
        if now - self._down_since > self._patience_s:
            raise CliError(
                f"{message}. Nothing has answered for {now - self._down_since:.0f} s; "
                "the same command continues when it runs again", UNREACHABLE,
            )  # fmt: skip
        self._pause(now, None, message)

    def _pause(self, now: float, pause_s: float | None, message: str) -> None:
        is_new = now >= self._resume_at
        if pause_s is None:
            pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._num_pauses, 10))
            pause_s *= random.uniform(0.75, 1.25)
            if not is_new:
                return  # the others' failures of the same moment
        if is_new:
            if self._num_pauses in (0, 5) or self._num_pauses % 20 == 0:
                self._say(f"{message}; waiting {pause_s:.1f} s")
            self._num_pauses = min(self._num_pauses + 1, 1000)
        self._resume_at = max(self._resume_at, now + min(pause_s, LONGEST_RETRY_AFTER_S))


def local_pause_s(num_attempts: int) -> float:
    """How long one worker waits before it tries its image again."""
    return min(8.0, FIRST_PAUSE_S * 2.0 ** (num_attempts - 1)) * random.uniform(0.75, 1.25)

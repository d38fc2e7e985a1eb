"""Who may send work to a model now, who waits, and who must come back later.

A model takes as many requests at once as its replicas run, and a few that they have at hand; the others wait here, in
turns by key, so that one client's thousand requests delay another's first by one turn. What can't be answered before
its deadline isn't let wait for it. Knows nothing of HTTP, Ray or engines; used on one event loop.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Protocol

from serve_app.access.drain import Drain
from serve_app.access.key_file import DEFAULT_PRIORITY
from serve_app.access.keys import Key
from serve_app.access.turns import Turn, Turns
from serve_app.config.http import AdmissionConfig
from serve_app.errors import DeadlineExceeded, Overloaded, RateLimited, ServeAppError
from serve_app.messages import GenerationRequest

_LOOK_AGAIN_S = 0.5  # replicas come and go without notice to the queue
_LEAST_RETRY_AFTER_S = 1.0
_LEAST_TIMEOUT_S = 0.001
_CHARACTERS_PER_TOKEN = 4  # of English, with today's tokenizers: precise enough for a bound
_TOKENS_PER_IMAGE = 576  # a CLIP tower's at 336 pixels, what many models spend on one


def estimated_tokens(request: GenerationRequest) -> int:
    """An estimate of the prompt's tokens: text by its length, each image at one price. The engine counts exactly."""
    characters = sum(map(len, request.texts))
    num_ids = len(request.raw.tokens) if request.raw else 0
    return math.ceil(characters / _CHARACTERS_PER_TOKEN) + _TOKENS_PER_IMAGE * len(request.images) + num_ids


class Watcher(Protocol):
    """Counts the requests that wait. `Metrics` implements it."""

    def had_its_turn(self, queue: str) -> None:
        """A request did not have to wait."""
        ...

    def waiting(self, queue: str, num_tokens: int) -> AbstractContextManager[object]:
        """A request waits inside the block."""
        ...


class _Nobody:
    def had_its_turn(self, queue: str) -> None: ...

    def waiting(self, queue: str, num_tokens: int) -> AbstractContextManager[object]:
        return nullcontext()


class Admission:
    """One queue for each model.

    `capacity` says how many requests a model takes at once through this process, by its name; `queue_of` whose queue
    a name shares: an adapter waits with its base. `not_ready` is what a request is told at its deadline, where that
    is because its model has no replica.
    """

    def __init__(
        self,
        config: AdmissionConfig,
        capacity: Callable[[str], int],
        queue_of: Callable[[str], str] = lambda name: name,
        clock: Callable[[], float] = time.monotonic,
        watcher: Watcher = _Nobody(),  # noqa: B008 -- it has no state
        not_ready: Callable[[GenerationRequest], ServeAppError | None] = lambda _: None,
    ) -> None:
        self._config = config
        self._not_ready = not_ready
        self._capacity = capacity
        self._queue_of = queue_of
        self._clock = clock
        self._watcher = watcher
        self._queues: dict[str, _Queue] = {}

    @asynccontextmanager
    async def admitted(
        self, request: GenerationRequest, key: Key | None, *, generates: bool = True
    ) -> AsyncIterator[GenerationRequest]:
        """Wait for the request's turn, then run the block with the time that is left.

        Where it `generates` and the block ends well, it tells how soon a place comes free.

        Raises `Overloaded` where the queue is full or too long for the deadline, `RateLimited` where this key has
        more than its share of a full queue, and `DeadlineExceeded`.
        """
        name = self._queue_of(request.model)
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Queue(
                name, self._config, lambda: self._capacity(name), self._clock, self._watcher, self._not_ready
            )
        came_at = self._clock()
        num_taken = request.sampling.num_answers if generates else 1
        await queue.enter(request, key, num_taken)
        started_at = self._clock()
        waited_s = started_at - came_at
        is_done = False
        try:
            if waited_s > 0:
                left_s = max(request.timeout_s - waited_s, _LEAST_TIMEOUT_S)
                yield replace(request, timeout_s=left_s, waited_s=waited_s)
            else:
                yield request
            is_done = True
        finally:
            queue.leave(num_taken, started_at if is_done and generates else None)

    def num_waiting(self, model: str) -> int:
        """How many requests wait here for the model."""
        queue = self._queues.get(self._queue_of(model))
        return queue.turns.num_waiting if queue else 0

    @property
    def is_pressed(self) -> bool:
        """Whether any request waits here."""
        return any(queue.turns.num_waiting for queue in self._queues.values())


class _Queue:
    def __init__(
        self,
        name: str,
        config: AdmissionConfig,
        capacity: Callable[[], int],
        clock: Callable[[], float],
        watcher: Watcher,
        not_ready: Callable[[GenerationRequest], ServeAppError | None],
    ) -> None:
        self._not_ready = not_ready
        self._name = name
        self._config = config
        self._capacity = capacity
        self._clock = clock
        self._watcher = watcher
        self._num_taken = 0
        self.turns = Turns()
        self._drain = Drain()
        self._looking: asyncio.TimerHandle | None = None

    async def enter(self, request: GenerationRequest, key: Key | None, num_places: int) -> None:
        if not self.turns.num_waiting and self._num_taken < self._capacity():
            self._take(num_places)
            self._watcher.had_its_turn(self._name)
            return
        priority = key.priority if key else DEFAULT_PRIORITY
        turn = Turn(key.name if key else "", priority, num_places, estimated_tokens(request))
        self._refuse_if_hopeless(request, turn)
        self._make_room(turn)
        self._append(turn)
        with self._watcher.waiting(self._name, turn.num_tokens):
            await self._wait(turn, request)

    async def _wait(self, turn: Turn, request: GenerationRequest) -> None:
        try:
            async with asyncio.timeout(request.timeout_s):
                await turn.may_run
        except (TimeoutError, asyncio.CancelledError) as exc:
            if turn.is_in_line:
                self.turns.remove(turn)
            elif turn.is_let_in:  # and given up in the same moment
                self._give_back(turn.num_places)
            if isinstance(exc, asyncio.CancelledError):
                raise
            raise self._not_ready(request) or DeadlineExceeded(
                f"model '{self._name}' had no room within {request.timeout_s:.0f} s: try again later"
            ) from exc

    def leave(self, num_places: int, answered_since: float | None) -> None:
        """Free its places. `answered_since`: when an answered request was let in; None if that isn't a measure."""
        if answered_since is not None and self._num_taken >= self._capacity():
            now = self._clock()
            self._drain.ended(now, now - answered_since, self._num_taken)
        self._give_back(num_places)

    def _take(self, num_places: int) -> None:
        self._num_taken += num_places
        if self._drain.has_room and self._num_taken >= self._capacity():
            self._drain.is_full_from(self._clock())

    def _give_back(self, num_places: int) -> None:
        self._num_taken -= num_places
        self._let_in()
        if not self._drain.has_room and self._num_taken < self._capacity():
            self._drain.has_room_from(self._clock())

    def _refuse_if_hopeless(self, request: GenerationRequest, turn: Turn) -> None:
        wait_s = self._seconds_until_free(self.turns.num_places_before(turn) + turn.num_places)
        if wait_s is not None and wait_s + self._drain.usual_seconds(self._clock()) > request.timeout_s:
            raise self._overloaded(f"is busy for some {wait_s:.0f} s, longer than this request may take")

    def _make_room(self, turn: Turn) -> None:
        """In a full queue, let the last ones give way to this one, or refuse it."""
        if self.turns.num_waiting and turn.num_tokens > self._config.max_waiting_tokens:
            raise self._too_long_to_wait(turn)
        going = self.turns.giving_way(turn, self._config.max_waiting_requests, self._config.max_waiting_tokens)
        if going is None:
            raise self._over_share() if self.turns.shares_with(turn) else self._overloaded(self._fullness())
        for last in going:
            error = self._over_share() if last.priority == turn.priority else self._overloaded(self._fullness())
            self.turns.remove(last)
            if not last.may_run.cancelled():
                last.may_run.set_exception(error)

    def _fullness(self) -> str:
        if self.turns.num_waiting >= self._config.max_waiting_requests:
            return f"has {self.turns.num_waiting} waiting requests, as many as it takes"
        most_tokens = self._config.max_waiting_tokens
        return f"has about {self.turns.num_tokens} tokens of prompts waiting, and takes {most_tokens}"

    def _too_long_to_wait(self, turn: Turn) -> Overloaded:
        return Overloaded(
            f"model '{self._name}' has requests waiting, and this prompt alone has about {turn.num_tokens} tokens of "
            f"the {self._config.max_waiting_tokens} that may wait (max_waiting_tokens): send a shorter one, or retry "
            "when nothing waits",
            None,
            self._retry_after_s(),
        )

    def _over_share(self) -> RateLimited:
        return RateLimited(
            f"model '{self._name}' is full, and this key has the most requests or tokens waiting: send fewer at once",
            None,
            self._retry_after_s(),
        )

    def _overloaded(self, why: str) -> Overloaded:
        return Overloaded(f"model '{self._name}' {why}: retry later", None, self._retry_after_s())

    def _retry_after_s(self) -> float:
        """Seconds until the requests that wait now will have had their turns."""
        return max(_LEAST_RETRY_AFTER_S, self._seconds_until_free(max(1, self.turns.num_places)) or 0.0)

    def _seconds_until_free(self, num_places: int) -> float | None:
        return self._drain.seconds_until_free(self._clock(), num_places, self._capacity())

    def _append(self, turn: Turn) -> None:
        self.turns.append(turn)
        self._let_in()
        self._look_again()

    def _let_in(self) -> None:
        """Let in as many as there is room for. A request that takes several places needs one free place."""
        while self.turns.num_waiting and self._num_taken < self._capacity():
            turn = self.turns.pop()
            if not turn.may_run.cancelled():
                self._take(turn.num_places)
                turn.is_let_in = True
                turn.may_run.set_result(None)

    def _look_again(self) -> None:
        if self._looking is None and self.turns.num_waiting:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._look)

    def _look(self) -> None:
        self._looking = None
        self._let_in()
        self._look_again()

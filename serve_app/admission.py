"""Who may send a model work now, who waits, and who is told at once to come back later.

A model takes as many requests at once as its replicas run and keep ready; the others wait here, in turns by key, so
that one client's thousand requests delay another's first by one turn. What can't be answered before its deadline
isn't let wait for it. Knows nothing of HTTP, Ray or engines; used on one event loop.
"""

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from serve_app.errors import DeadlineExceeded, Overloaded, RateLimited
from serve_app.http_config import AdmissionConfig
from serve_app.key_file import DEFAULT_PRIORITY
from serve_app.keys import Key
from serve_app.messages import GenerationRequest, Text

_REMEMBERED_ENDS = 64
_REMEMBER_S = 30.0
_LOOK_AGAIN_S = 0.5  # replicas come and go without a word to the queue
_LEAST_RETRY_AFTER_S = 1.0
_LEAST_TIMEOUT_S = 0.001
_CHARACTERS_PER_TOKEN = 4  # of English, in the tokenizers of today; a bound needs no better
_TOKENS_PER_PICTURE = 576  # a CLIP tower's at 336 pixels, what many models spend on one


def estimated_tokens(request: GenerationRequest) -> int:
    """About how many tokens the prompt has: text by its length, pictures at one price. Never the engine's count."""
    characters = sum(
        len(part.text) for message in request.messages for part in message.parts if isinstance(part, Text)
    )
    num_ids = len(request.raw.tokens) if request.raw else 0
    return math.ceil(characters / _CHARACTERS_PER_TOKEN) + _TOKENS_PER_PICTURE * len(request.pictures) + num_ids


class Admission:
    """One queue for each model.

    `capacity` says how many requests a model takes at once through this process, by its name; `queue_of` whose queue
    a name shares: an adapter waits with its base.
    """

    def __init__(
        self,
        config: AdmissionConfig,
        capacity: Callable[[str], int],
        queue_of: Callable[[str], str] = lambda name: name,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._capacity = capacity
        self._queue_of = queue_of
        self._clock = clock
        self._queues: dict[str, _Queue] = {}

    @asynccontextmanager
    async def admitted(self, request: GenerationRequest, key: Key | None) -> AsyncIterator[GenerationRequest]:
        """The request may run inside the block, with what is left of its time. Waits for its turn first.

        Raises `Overloaded` where the queue is full or too long for the deadline, `RateLimited` where this key has
        more than its share of a full queue, and `DeadlineExceeded`.
        """
        name = self._queue_of(request.model)
        queue = self._queues.get(name)
        if queue is None:
            queue = self._queues[name] = _Queue(name, self._config, lambda: self._capacity(name), self._clock)
        came_at = self._clock()
        await queue.enter(request, key)
        started_at = self._clock()
        left_s = request.timeout_s - (started_at - came_at)
        try:
            yield replace(request, timeout_s=max(left_s, _LEAST_TIMEOUT_S)) if started_at > came_at else request
        finally:
            queue.leave(started_at)

    def num_waiting(self, model: str) -> int:
        """Requests that wait here for the model."""
        queue = self._queues.get(self._queue_of(model))
        return queue.num_waiting if queue else 0


class _Turn:
    """A request that waits, in the line of its key among those of its priority."""

    __slots__ = ("is_in_line", "is_let_in", "key", "may_run", "num_tokens", "priority")

    def __init__(self, num_tokens: int, key: Key | None) -> None:
        self.num_tokens = num_tokens
        self.key = key.name if key else ""
        self.priority = key.priority if key else DEFAULT_PRIORITY
        self.may_run: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_in_line, self.is_let_in = True, False


class _Queue:
    def __init__(
        self, name: str, config: AdmissionConfig, capacity: Callable[[], int], clock: Callable[[], float]
    ) -> None:
        self._name = name
        self._config = config
        self._capacity = capacity
        self._clock = clock
        self._num_running = 0
        self.num_waiting = self._num_waiting_tokens = 0
        # By priority, then by key: the key whose turn is next comes first.
        self._turns: dict[int, OrderedDict[str, deque[_Turn]]] = {}
        self._ends: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED_ENDS)  # when, after how many seconds
        self._looking: asyncio.TimerHandle | None = None

    async def enter(self, request: GenerationRequest, key: Key | None) -> None:
        if not self.num_waiting and self._num_running < self._capacity():
            self._num_running += 1
            return
        turn = _Turn(estimated_tokens(request), key)
        self._refuse_if_hopeless(request, turn)
        self._append(turn)
        try:
            async with asyncio.timeout(request.timeout_s):
                await turn.may_run
        except (TimeoutError, asyncio.CancelledError) as exc:
            if turn.is_in_line:
                self._remove(turn)
            elif turn.is_let_in:  # and given up in the same moment
                self._give_back()
            if isinstance(exc, asyncio.CancelledError):
                raise
            raise DeadlineExceeded(
                f"model '{self._name}' had no room within {request.timeout_s:.0f} s: try again later"
            ) from exc

    def leave(self, started_at: float) -> None:
        now = self._clock()
        self._ends.append((now, now - started_at))
        self._give_back()

    def _give_back(self) -> None:
        self._num_running -= 1
        self._let_in()

    def _refuse_if_hopeless(self, request: GenerationRequest, turn: _Turn) -> None:
        most, most_tokens = self._config.max_waiting_requests, self._config.max_waiting_tokens
        if self.num_waiting >= most:
            self._make_room(turn)
        if self.num_waiting and self._num_waiting_tokens + turn.num_tokens > most_tokens:
            raise self._overloaded(
                f"has about {self._num_waiting_tokens} tokens of prompts waiting, and takes {most_tokens}"
            )
        wait_s = self._seconds_until_free(self._num_turns_before(turn) + 1)
        if wait_s is not None and wait_s + self._usual_seconds() > request.timeout_s:
            raise self._overloaded(f"is busy for some {wait_s:.0f} s, longer than this request may take")

    def _make_room(self, turn: _Turn) -> None:
        """In a full queue the longest line gives way to a shorter one; where that is this one's, it is refused."""
        lines = [line for keys in self._turns.values() for line in keys.values()]
        longest = max(lines, key=len, default=None)
        if longest is None or (len(lines) == 1 and longest[0].key == turn.key):
            raise self._overloaded(f"has {self.num_waiting} waiting requests, as many as it takes")
        last = longest[-1]
        if len(longest) <= len(self._line_of(turn)) + 1:
            raise self._over_share()
        self._remove(last)
        if not last.may_run.cancelled():
            last.may_run.set_exception(self._over_share())

    def _over_share(self) -> RateLimited:
        wait_s = self._seconds_until_free(max(1, self.num_waiting)) or 0.0
        return RateLimited(
            f"model '{self._name}' is full, and this key has the most requests waiting: send fewer at once",
            None,
            max(_LEAST_RETRY_AFTER_S, wait_s),
        )

    def _line_of(self, turn: _Turn) -> Sequence[_Turn]:
        return self._lines_of(turn.priority).get(turn.key, ())

    def _lines_of(self, priority: int) -> Mapping[str, Sequence[_Turn]]:
        return self._turns.get(priority) or {}

    def _num_turns_before(self, turn: _Turn) -> int:
        """How many of those that wait are let in before it."""
        own = len(self._line_of(turn))
        above = sum(len(line) for p, keys in self._turns.items() if p > turn.priority for line in keys.values())
        beside = self._lines_of(turn.priority).items()
        return above + own + sum(min(len(line), own + 1) for key, line in beside if key != turn.key)

    def _overloaded(self, why: str) -> Overloaded:
        wait_s = self._seconds_until_free(max(1, self.num_waiting))
        return Overloaded(f"model '{self._name}' {why}: retry later", None, max(_LEAST_RETRY_AFTER_S, wait_s or 0.0))

    def _seconds_until_free(self, num_ends: int) -> float | None:
        """How long until so many requests have ended, at the rate of the last ones; None where nobody knows."""
        now = self._clock()
        while self._ends and now - self._ends[0][0] > _REMEMBER_S:
            self._ends.popleft()
        if len(self._ends) < 2:
            return None
        return num_ends * (now - self._ends[0][0]) / len(self._ends)

    def _usual_seconds(self) -> float:
        """The median time that the last requests took, once they ran."""
        return sorted(seconds for _, seconds in self._ends)[len(self._ends) // 2]

    def _append(self, turn: _Turn) -> None:
        self._turns.setdefault(turn.priority, OrderedDict()).setdefault(turn.key, deque()).append(turn)
        self.num_waiting += 1
        self._num_waiting_tokens += turn.num_tokens
        self._let_in()
        self._look_again()

    def _remove(self, turn: _Turn) -> None:
        """It waits no longer: its client left, or it is too late."""
        keys = self._turns[turn.priority]
        keys[turn.key].remove(turn)
        if not keys[turn.key]:
            del keys[turn.key]
        self._forget(turn)

    def _let_in(self) -> None:
        """As many as there is room for, the highest priority first, in it one of each key after the other."""
        while self.num_waiting and self._num_running < self._capacity():
            keys = self._turns[max(priority for priority, keys in self._turns.items() if keys)]
            name, turns = next(iter(keys.items()))
            turn = turns.popleft()
            keys.move_to_end(name)
            if not turns:
                del keys[name]
            self._forget(turn)
            if not turn.may_run.cancelled():
                self._num_running += 1
                turn.is_let_in = True
                turn.may_run.set_result(None)

    def _forget(self, turn: _Turn) -> None:
        turn.is_in_line = False
        self.num_waiting -= 1
        self._num_waiting_tokens -= turn.num_tokens

    def _look_again(self) -> None:
        if self._looking is None and self.num_waiting:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._look)

    def _look(self) -> None:
        self._looking = None
        self._let_in()
        self._look_again()

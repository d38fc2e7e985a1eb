"""Brings a wish to call off a request to the process that answers it, through the sidecar, which all can reach.

Each process that serves HTTP keeps one call open here and hears of wishes at once.
"""

import asyncio
from dataclasses import dataclass, field

from serve_app.access.keys import Key

LISTEN_S = 20.0  # how long one call stays open
_ANSWERS_TIMEOUT_S = 2.0
_ABSENT_S = 5.0  # a process that isn't listening for so long is gone


@dataclass(frozen=True, slots=True)
class Wish:
    """To call off the request of this id, which came with `key`."""

    number: int
    request_id: str
    key: Key | None


@dataclass(slots=True)
class _Listener:
    wishes: list[Wish] = field(default_factory=list)
    has_some: asyncio.Event = field(default_factory=asyncio.Event)
    num_calls: int = 0
    left_at: float = 0.0


class CancelBoard:
    """Used on one event loop."""

    def __init__(self) -> None:
        self._listeners: dict[str, _Listener] = {}
        self._open: dict[int, tuple[set[str], asyncio.Future[bool]]] = {}
        self._next_number = 0

    async def listen(self, process: str, outcomes: dict[int, bool], seconds: float = LISTEN_S) -> list[Wish]:
        """New wishes, as soon as there are any; `outcomes` answers those of the call before."""
        for number, is_found in outcomes.items():
            self._answered(number, process, is_found)
        listener = self._listeners.setdefault(process, _Listener())
        listener.num_calls += 1
        try:
            async with asyncio.timeout(seconds):
                await listener.has_some.wait()
        except TimeoutError:
            pass
        finally:
            listener.num_calls -= 1
            listener.left_at = asyncio.get_running_loop().time()
        wishes, listener.wishes = listener.wishes, []
        listener.has_some.clear()
        return wishes

    async def cancel(self, request_id: str, key: Key | None, asker: str) -> bool:
        """Whether a process other than the asker had such a request, and has called it off."""
        self._forget_absent()
        others = self._listeners.keys() - {asker}
        if not others:
            return False
        self._next_number += 1
        wish = Wish(self._next_number, request_id, key)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._open[wish.number] = (set(others), answer)
        for process in others:
            self._listeners[process].wishes.append(wish)
            self._listeners[process].has_some.set()
        try:
            async with asyncio.timeout(_ANSWERS_TIMEOUT_S):
                return await answer
        except TimeoutError:
            return False
        finally:
            del self._open[wish.number]

    def _answered(self, number: int, process: str, is_found: bool) -> None:
        waiting, answer = self._open.get(number, (set(), None))
        waiting.discard(process)
        if answer is not None and not answer.done() and (is_found or not waiting):
            answer.set_result(is_found)

    def _forget_absent(self) -> None:
        now = asyncio.get_running_loop().time()
        for process, listener in list(self._listeners.items()):
            if not listener.num_calls and now - listener.left_at > _ABSENT_S:
                del self._listeners[process]

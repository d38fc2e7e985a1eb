"""The requests that wait for one model, in the order of their turns: by priority, then one of each key in turn.

Knows who comes next, how much is let in before whom, and who gives way in a full queue. Knows nothing of time.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import islice


class Turn:
    """A request that waits. It takes `num_places` of the model, and its prompt has about `num_tokens`."""

    __slots__ = ("is_in_line", "is_let_in", "key", "may_run", "num_places", "num_tokens", "priority")

    def __init__(self, key: str, priority: int, num_places: int = 1, num_tokens: int = 0) -> None:
        self.key = key
        self.priority = priority
        self.num_places = num_places
        self.num_tokens = num_tokens
        self.may_run: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_in_line = self.is_let_in = False


class _Line:
    """The waiting requests of one key, with their sums."""

    __slots__ = ("key", "num_places", "num_tokens", "priority", "turns")

    def __init__(self, priority: int, key: str) -> None:
        self.priority, self.key = priority, key
        self.turns: deque[Turn] = deque()
        self.num_places = self.num_tokens = 0

    def count(self, turn: Turn, sign: int) -> None:
        self.num_places += sign * turn.num_places
        self.num_tokens += sign * turn.num_tokens


class _Left:
    """What is left of a line if some requests at its end give way."""

    __slots__ = ("line", "num_tokens", "num_turns")

    def __init__(self, line: _Line) -> None:
        self.line, self.num_turns, self.num_tokens = line, len(line.turns), line.num_tokens

    def size(self, in_tokens: bool) -> int:
        return self.num_tokens if in_tokens else self.num_turns

    def pop(self) -> Turn:
        self.num_turns -= 1
        last = self.line.turns[self.num_turns]
        self.num_tokens -= last.num_tokens
        return last


class Turns:
    """A line for each priority and key. Appending and letting in the next one don't look at the others."""

    def __init__(self) -> None:
        self.num_waiting = self.num_places = self.num_tokens = 0
        # By priority, then by key: the key whose turn is next comes first.
        self._lines: dict[int, OrderedDict[str, _Line]] = {}

    def append(self, turn: Turn) -> None:
        keys = self._lines.setdefault(turn.priority, OrderedDict())
        line = keys.get(turn.key)
        if line is None:
            line = keys[turn.key] = _Line(turn.priority, turn.key)
        line.turns.append(turn)
        self._count(line, turn, 1)

    def remove(self, turn: Turn) -> None:
        line = self._lines[turn.priority][turn.key]
        line.turns.remove(turn)
        self._count(line, turn, -1)

    def pop(self) -> Turn:
        """The next request. After it comes one of another key, if one of the same priority waits."""
        keys = self._lines[max(self._lines)]
        line = next(iter(keys.values()))
        turn = line.turns.popleft()
        keys.move_to_end(line.key)
        self._count(line, turn, -1)
        return turn

    def num_places_before(self, turn: Turn) -> int:
        """How many places go first if this one is appended: all above it, and as many of each line beside it."""
        own = self._line_of(turn)
        num_beside = (len(own.turns) if own else 0) + 1
        num = 0
        for line in self._all_lines():
            if line is own or line.priority > turn.priority or len(line.turns) <= num_beside:
                num += line.num_places if line.priority >= turn.priority else 0
            elif line.priority == turn.priority:
                num += sum(other.num_places for other in islice(line.turns, num_beside))
        return num

    def giving_way(self, turn: Turn, max_waiting: int, max_tokens: int) -> list[Turn] | None:
        """The requests that must give way to this one; None if this one must go itself.

        The lowest priority gives way first, from the end of its longest line; of equal priority only a longer line
        does, and a higher one never. Where nothing waits, a prompt of any length fits.
        """
        if not max_waiting:
            return None
        if not self.num_waiting:
            return []
        if turn.num_tokens > max_tokens:
            return None
        num_over, tokens_over = self.num_waiting + 1 - max_waiting, self.num_tokens + turn.num_tokens - max_tokens
        if num_over <= 0 and tokens_over <= 0:
            return []
        own = self._line_of(turn)
        left = {line: _Left(line) for line in self._all_lines() if line is not own and line.priority <= turn.priority}
        going: list[Turn] = []
        while num_over > 0 or tokens_over > 0:
            in_tokens = num_over <= 0
            longest = max(left.values(), key=lambda rest: (-rest.line.priority, rest.size(in_tokens)), default=None)
            own_size = (_Left(own).size(in_tokens) if own else 0) + (turn.num_tokens if in_tokens else 1)
            if longest is None or (longest.line.priority == turn.priority and longest.size(in_tokens) <= own_size):
                return None
            last = longest.pop()
            if not longest.num_turns:
                del left[longest.line]
            going.append(last)
            num_over, tokens_over = num_over - 1, tokens_over - last.num_tokens
        return going

    def shares_with(self, turn: Turn) -> bool:
        """Whether some of this key's requests wait, and some of another key whose priority isn't higher."""
        others = any(line.key != turn.key and line.priority <= turn.priority for line in self._all_lines())
        return others and self._line_of(turn) is not None

    def _line_of(self, turn: Turn) -> _Line | None:
        keys = self._lines.get(turn.priority)
        return keys.get(turn.key) if keys else None

    def _all_lines(self) -> Iterator[_Line]:
        return (line for keys in self._lines.values() for line in keys.values())

    def _count(self, line: _Line, turn: Turn, sign: int) -> None:
        turn.is_in_line = sign > 0
        line.count(turn, sign)
        self.num_waiting += sign
        self.num_places += sign * turn.num_places
        self.num_tokens += sign * turn.num_tokens
        if not line.turns:
            keys = self._lines[line.priority]
            del keys[line.key]
            if not keys:
                del self._lines[line.priority]

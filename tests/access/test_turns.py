"""Who comes next and who gives way, among those that wait."""

import pytest

from serve_app.access.turns import Turn, Turns


def waiting(*lines: tuple[str, int, int], num_tokens: int = 10) -> Turns:
    """Lines of key, priority and length."""
    turns = Turns()
    for key, priority, length in lines:
        for _ in range(length):
            turns.append(Turn(key, priority, num_tokens=num_tokens))
    return turns


def going(
    turns: Turns, key: str, priority: int, most: int = 8, tokens: int = 1000, own: int = 10
) -> list[str] | None:
    """The keys of those that give way to one more of this key."""
    gone = turns.giving_way(Turn(key, priority, num_tokens=own), most, tokens)
    return None if gone is None else [turn.key for turn in gone]


@pytest.mark.parametrize(
    ("lines", "newcomer", "gone"),
    [
        ([("a", 5, 7)], ("b", 5), []),
        ([("a", 5, 8)], ("b", 5), ["a"]),
        ([("a", 5, 8)], ("a", 5), None),
        ([("a", 5, 4), ("b", 5, 4)], ("b", 5), None),
        ([("a", 5, 6), ("b", 5, 2)], ("b", 5), ["a"]),
        ([("a", 5, 5), ("b", 5, 3)], ("c", 5), ["a"]),
        ([(f"k{n}", 5, 1) for n in range(8)], ("new", 5), None),  # all have their share
        ([("a", 9, 8)], ("b", 0), None),  # never a higher one, however long its line
        ([("a", 9, 7), ("b", 0, 1)], ("c", 0), None),
        ([("a", 9, 6), ("b", 0, 2)], ("c", 0), ["b"]),
        ([("a", 9, 6), ("b", 5, 2)], ("c", 0), None),
        ([("a", 0, 1), ("b", 5, 7)], ("c", 9), ["a"]),  # the lowest first, however short
        ([("a", 0, 8)], ("b", 9), ["a"]),
        ([("a", 0, 2), ("b", 9, 6)], ("b", 9), ["a"]),
    ],
)
async def test_who_gives_way_in_a_full_queue(
    lines: list[tuple[str, int, int]], newcomer: tuple[str, int], gone: list[str] | None
) -> None:
    assert going(waiting(*lines), *newcomer) == gone


@pytest.mark.parametrize(
    ("lines", "newcomer", "own", "gone"),
    [
        ([("a", 5, 9)], ("b", 5), 10, []),
        ([("a", 5, 10)], ("b", 5), 10, ["a"]),
        ([("a", 5, 10)], ("b", 5), 40, ["a"] * 4),
        ([("a", 5, 10)], ("b", 5), 60, None),  # it would have more than the other keeps
        ([("a", 5, 10)], ("a", 5), 10, None),
        ([("a", 9, 10)], ("b", 5), 10, None),
        ([("a", 0, 10)], ("b", 5), 100, ["a"] * 10),
        ([("a", 0, 10)], ("b", 9), 101, None),  # more than may wait at all
        ([], ("a", 0), 101, []),  # but for what waits alone
    ],
)
async def test_who_gives_way_to_a_prompt(
    lines: list[tuple[str, int, int]], newcomer: tuple[str, int], own: int, gone: list[str] | None
) -> None:
    assert going(waiting(*lines), *newcomer, most=100, tokens=100, own=own) == gone


async def test_where_nothing_may_wait_nothing_does() -> None:
    assert going(Turns(), "a", 9, most=0) is None


async def test_what_comes_before_a_turn() -> None:
    turns = waiting(("a", 5, 6), ("b", 5, 1), ("c", 9, 3), ("d", 1, 5))
    assert turns.num_places_before(Turn("new", 5)) == 1 + 1 + 3
    assert turns.num_places_before(Turn("b", 5)) == 2 + 1 + 3
    assert turns.num_places_before(Turn("a", 5)) == 6 + 1 + 3
    assert turns.num_places_before(Turn("new", 0)) == 15
    assert turns.num_places_before(Turn("new", 9)) == 1
    turns.append(Turn("big", 9, num_places=16))
    assert turns.num_places_before(Turn("new", 9)) == 17


async def test_they_come_by_priority_and_then_in_turns() -> None:
    turns = waiting(("a", 5, 3), ("b", 5, 2), ("c", 9, 1), ("d", 1, 1))
    left = Turn("b", 5)
    turns.append(left)
    turns.remove(left)
    assert [turns.pop().key for _ in range(turns.num_waiting)] == ["c", "a", "b", "a", "b", "a", "d"]
    assert (turns.num_waiting, turns.num_places, turns.num_tokens) == (0, 0, 0)

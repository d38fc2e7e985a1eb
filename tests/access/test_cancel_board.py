"""Wishes to call a request off, and the processes that may have it."""

import asyncio

from serve_app.access.cancel_board import CancelBoard, Wish
from serve_app.access.keys import Key
from serve_app.access.running import Running


class Request:
    def __init__(self, request_id: str, key: Key | None = None) -> None:
        self.id = request_id
        self.key = key
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


def a_key(name: str, is_admin: bool = False) -> Key:
    return Key(name=name, id=name, is_admin=is_admin)


async def process(board: CancelBoard, name: str, running: Running) -> None:
    """A process that listens for ever."""
    found: dict[int, bool] = {}
    while True:
        wishes: list[Wish] = await board.listen(name, found)
        found = {wish.number: running.cancel(wish.request_id, wish.key) for wish in wishes}


async def test_a_wish_finds_the_process_that_has_the_request() -> None:
    board = CancelBoard()
    all_running = {name: Running() for name in "abc"}
    tasks = [asyncio.create_task(process(board, name, running)) for name, running in all_running.items()]
    await asyncio.sleep(0)
    request = Request("r1", a_key("alice"))
    with all_running["c"].listed(request):
        assert not await board.cancel("r1", a_key("bob"), "a")
        assert not request.is_cancelled
        assert not await board.cancel("r2", a_key("alice"), "a")
        assert await board.cancel("chatcmpl-r1", a_key("alice"), "a")
        assert request.is_cancelled
        assert await board.cancel("r1", a_key("root", is_admin=True), "b")
    assert not await board.cancel("r1", a_key("alice"), "a")
    many = await asyncio.gather(*(board.cancel(f"x{number}", None, "a") for number in range(50)))
    assert not any(many)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_nobody_listens_and_the_asker_alone_does() -> None:
    board = CancelBoard()
    assert not await board.cancel("r1", None, "a")
    alone = asyncio.create_task(process(board, "a", Running()))
    await asyncio.sleep(0)
    assert not await board.cancel("r1", None, "a")
    alone.cancel()
    await asyncio.gather(alone, return_exceptions=True)


async def test_a_process_that_hangs_costs_seconds_and_not_the_answer_of_another() -> None:
    board = CancelBoard()
    await board.listen("hung", {}, seconds=0.01)  # and never again
    running = Running()
    task = asyncio.create_task(process(board, "well", running))
    await asyncio.sleep(0)
    request = Request("r1")
    with running.listed(request):
        async with asyncio.timeout(30):
            assert await board.cancel("r1", None, "asker")
    async with asyncio.timeout(30):
        assert not await board.cancel("r1", None, "asker")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_requests_that_share_an_id_are_called_off_together_and_only_their_keys() -> None:
    running = Running()
    mine, too, other = Request("same", a_key("a")), Request("same", a_key("a")), Request("same", a_key("b"))
    with running.listed(mine), running.listed(too), running.listed(other):
        assert running.cancel("same", a_key("a"))
        assert (mine.is_cancelled, too.is_cancelled, other.is_cancelled) == (True, True, False)
        assert not running.cancel("same", None)
        assert not running.cancel("other", a_key("a"))
    assert not running.cancel("same", a_key("a"))

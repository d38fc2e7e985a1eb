"""Turns, shares and refusals in front of a model, with scripted capacity and time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from serve_app.access.admission import Admission, estimated_tokens
from serve_app.access.keys import Key
from serve_app.config.http import AdmissionConfig
from serve_app.errors import DeadlineExceeded, EngineFailed, ModelNotReady, Overloaded, RateLimited, ServeAppError
from serve_app.messages import GenerationRequest, Message, RgbImage, Sampling, Text, Tool, ToolCall, ToolUse
from serve_app.models.entry import num_places


class World:
    """A model of a given capacity, and a clock that stands still unless moved."""

    def __init__(self, capacity: int = 1, **limits: int) -> None:
        self.capacity = capacity
        self.now_s = 0.0
        self.admission = Admission(AdmissionConfig(**limits), lambda _: self.capacity, clock=lambda: self.now_s)
        self.order: list[str] = []

    @asynccontextmanager
    async def busy(self, num_requests: int = 1) -> AsyncIterator[Callable[[], None]]:
        """So many requests run until the block ends, or the yielded function lets one of them end."""
        may_end = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(self._hold(may_end)) for _ in range(num_requests)]
        await settle()
        try:
            yield may_end.release
        finally:
            for _ in tasks:
                may_end.release()
            await asyncio.gather(*tasks)

    async def _hold(self, may_end: asyncio.Semaphore) -> None:
        async with self.admission.admitted(a_request(), None):
            await may_end.acquire()

    def ask(self, name: str, key: Key | None = None, **more: Any) -> asyncio.Task[None]:
        """A request that notes its turn, takes `seconds` of the scripted clock, and ends."""
        return asyncio.create_task(self._asked(name, key, **more))

    async def _asked(
        self, name: str, key: Key | None, seconds: float = 0.0, timeout_s: float = 60.0, fails: bool = False
    ) -> None:
        async with self.admission.admitted(a_request(timeout_s), key):
            self.order.append(name)
            self.now_s += seconds
            if fails:
                raise EngineFailed("as it was told to")


def a_request(timeout_s: float = 60.0, text: str = "Hello") -> GenerationRequest:
    return GenerationRequest("id", "m", (Message("user", (Text(text),)),), Sampling(), timeout_s)


def a_key(name: str, priority: int = 5) -> Key:
    return Key(name=name, id=name, priority=priority)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def refusal_of(task: asyncio.Task[None]) -> ServeAppError:
    with pytest.raises(ServeAppError) as raised:
        await task
    return raised.value


async def test_what_there_is_room_for_runs_at_once() -> None:
    world = World(capacity=3)
    async with world.busy(2):
        await world.ask("third")
    assert world.order == ["third"]


async def test_keys_take_turns_however_many_requests_one_of_them_has() -> None:
    world = World()
    async with world.busy():
        tasks = [world.ask(f"many-{n}", a_key("many")) for n in range(5)]
        await settle()
        tasks += [world.ask("few-0", a_key("few")), world.ask("few-1", a_key("few"))]
        await settle()
        assert world.admission.num_waiting("m") == 7
    await asyncio.gather(*tasks)
    assert world.order == ["many-0", "few-0", "many-1", "few-1", "many-2", "many-3", "many-4"]
    assert world.admission.num_waiting("m") == 0


async def test_a_higher_priority_goes_first() -> None:
    world = World()
    async with world.busy():
        tasks = [world.ask("low", a_key("a", 1)), world.ask("usual", None), world.ask("high", a_key("b", 9))]
        await settle()
    await asyncio.gather(*tasks)
    assert world.order == ["high", "usual", "low"]


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    world = World(max_waiting_requests=2)
    for _ in range(5):
        await world.ask("past", seconds=4.0)
    async with world.busy():
        tasks = [world.ask("a"), world.ask("b")]
        await settle()
        refused = await refusal_of(world.ask("c"))
        assert isinstance(refused, Overloaded)
        assert "2 waiting requests" in refused.message
        assert refused.retry_after_s is not None
        assert 4.0 <= refused.retry_after_s <= 10.0  # two ends at one in about four seconds
    await asyncio.gather(*tasks)


async def test_where_nothing_may_wait_what_finds_no_room_is_refused() -> None:
    world = World(max_waiting_requests=0)
    async with world.busy():
        assert isinstance(await refusal_of(world.ask("a")), Overloaded)
    await world.ask("b")


async def test_in_a_full_queue_the_longest_line_gives_way() -> None:
    world = World(max_waiting_requests=3)
    async with world.busy():
        many = [world.ask(f"many-{n}", a_key("many")) for n in range(3)]
        await settle()
        assert isinstance(await refusal_of(world.ask("many-3", a_key("many"))), Overloaded)  # nobody else waits
        few = world.ask("few", a_key("few"))
        await settle()
        assert isinstance(await refusal_of(many.pop()), RateLimited)
        assert isinstance(await refusal_of(world.ask("many-4", a_key("many"))), RateLimited)
    await asyncio.gather(*many, few)
    assert world.order == ["many-0", "few", "many-1"]


async def test_too_many_tokens_of_prompts_may_not_wait() -> None:
    world = World(max_waiting_tokens=100)
    long = a_request(text="x" * 360)
    assert estimated_tokens(long) == 90
    async with world.busy():
        waits = asyncio.create_task(_through(world.admission, long))
        await settle()
        with pytest.raises(Overloaded, match="90"):
            await _through(world.admission, long)
    await waits


async def _through(admission: Admission, request: GenerationRequest, key: Key | None = None) -> GenerationRequest:
    async with admission.admitted(request, key) as admitted:
        return admitted


def test_images_count_as_tokens() -> None:
    image = RgbImage(1, 1, b"123")
    request = GenerationRequest("id", "m", (Message("user", (image, Text("Hi!"))),), Sampling(), 1.0)
    assert estimated_tokens(request) == 577


def test_tools_and_calls_count_as_text() -> None:
    turn = Message("assistant", (Text("12345678"),), (ToolCall("an id", "name", "{'a': 1}"),))
    tools = ToolUse((Tool("name", "{'a': 1}", "four"),))
    request = GenerationRequest("id", "m", (turn,), Sampling(), 1.0, tool_use=tools)
    assert estimated_tokens(request) == 2 + 1 + 2 + 1 + 2 + 1


async def test_what_can_not_be_done_in_time_is_refused_at_once() -> None:
    world = World()
    for _ in range(4):
        await world.ask("past", seconds=10.0)
    async with world.busy():
        refused = await refusal_of(world.ask("hasty", timeout_s=15.0))
        assert isinstance(refused, Overloaded)
        assert "longer than this request may take" in refused.message
        patient = world.ask("patient", timeout_s=60.0)
        await settle()
    await patient


async def test_idle_time_is_no_slow_work() -> None:
    """Two requests, half a minute of nothing, then sixty at once, of which four run at a time."""
    world = World(capacity=4)
    for _ in range(2):
        await world.ask("past", seconds=0.1)
    world.now_s += 28.0
    async with world.busy(4):
        tasks = [world.ask(str(number), seconds=0.1, timeout_s=30.0) for number in range(60)]
        await settle()
        assert world.admission.num_waiting("m") == 60
    await asyncio.gather(*tasks)


async def test_long_answers_tell_nothing_of_a_burst_after_a_long_pause() -> None:
    world = World(capacity=5)
    async with world.busy(4):
        for _ in range(4):
            await world.ask("long", seconds=100.0, timeout_s=300.0)  # the fifth place, each time
        async with world.busy():
            assert "for some" in (await refusal_of(world.ask("hasty", timeout_s=30.0))).message
    world.now_s += 250.0
    async with world.busy(5):
        burst = [world.ask(str(number), timeout_s=300.0) for number in range(60)]
        await settle()
        assert world.admission.num_waiting("m") == 60
    await asyncio.gather(*burst)


async def test_what_ran_while_there_was_room_tells_nothing_of_a_full_model() -> None:
    world = World(capacity=64)
    for _ in range(8):
        await world.ask("past", seconds=20.0)  # one at a time
    async with world.busy(64):
        waits = world.ask("waits", timeout_s=30.0)
        await settle()
    await waits


async def test_neither_failures_nor_prompts_that_are_only_counted_are_ends() -> None:
    """They are done in no time, and would promise a place that nobody gets."""
    world = World()
    for _ in range(4):
        await world.ask("past", seconds=10.0)
    for _ in range(100):
        await asyncio.gather(world.ask("fails", fails=True), return_exceptions=True)
        async with world.admission.admitted(a_request(), None, generates=False):
            pass
    async with world.busy():
        assert "for some 10 s" in (await refusal_of(world.ask("hasty", timeout_s=15.0))).message


async def test_a_request_takes_as_many_places_as_it_wants_answers() -> None:
    world = World(capacity=4)
    four = replace(a_request(), sampling=Sampling(num_answers=4))
    async with world.admission.admitted(four, None):
        waits = world.ask("waits")
        await settle()
        assert not world.order
    await waits
    async with world.busy(3):
        assert (await _through(world.admission, replace(four, sampling=Sampling(num_answers=100)))).id == "id"


async def test_a_low_priority_never_throws_out_a_high_one() -> None:
    world = World(max_waiting_requests=3)
    async with world.busy():
        high = [world.ask(f"high-{n}", a_key("high", 9)) for n in range(3)]
        await settle()
        for low in range(3):
            assert isinstance(await refusal_of(world.ask("low", a_key(f"low-{low}", 0))), Overloaded)
    await asyncio.gather(*high)
    assert world.order == ["high-0", "high-1", "high-2"]


async def test_a_high_priority_finds_room_in_a_queue_that_is_full_of_low_ones() -> None:
    world = World(max_waiting_requests=3)
    async with world.busy():
        low = [world.ask(f"low-{n}", a_key("low", 0)) for n in range(3)]
        await settle()
        high = world.ask("high", a_key("high", 9))
        await settle()
        assert isinstance(await refusal_of(low.pop()), Overloaded)  # not its key's fault
    await asyncio.gather(*low, high)
    assert world.order == ["high", "low-0", "low-1"]


async def test_long_prompts_of_one_key_leave_room_for_anothers() -> None:
    world = World(max_waiting_tokens=100)
    async with world.busy():
        many = [
            asyncio.create_task(_through(world.admission, a_request(text="x" * 120), a_key("a"))) for _ in range(3)
        ]
        await settle()
        other = asyncio.create_task(_through(world.admission, a_request(text="x" * 80), a_key("b")))
        await settle()
        with pytest.raises(RateLimited, match="this key has the most"):
            await many.pop()
    await asyncio.gather(*many, other)


async def test_a_prompt_too_long_to_wait_is_told_so() -> None:
    world = World(max_waiting_tokens=100)
    async with world.busy():
        waits = asyncio.create_task(_through(world.admission, a_request(), a_key("a")))
        other = world.ask("other", a_key("b"))
        await settle()
        with pytest.raises(
            Overloaded, match=r"this prompt alone has about 101 tokens of the 100 .*max_waiting_tokens"
        ):
            await _through(world.admission, a_request(text="x" * 401), a_key("a"))
        assert world.admission.num_waiting("m") == 2
    await asyncio.gather(waits, other)
    await _through(world.admission, a_request(text="x" * 401), a_key("a"))  # nothing waits


@pytest.mark.parametrize(
    ("num_at_once", "num_replicas", "places"),
    [(256, 1, 288), (256, 4, 1152), (16, 1, 18), (16, 0, 2), (256, 0, 32), (1, 1, 2), (1, 0, 1), (4, 3, 14)],
)
def test_a_model_takes_what_its_replicas_run_and_a_few_more(num_at_once: int, num_replicas: int, places: int) -> None:
    assert num_places(num_at_once, num_replicas) == places


async def test_what_waits_too_long_is_late_and_leaves_no_trace() -> None:
    world = World()
    async with world.busy():
        late = world.ask("late", timeout_s=0.02)
        assert isinstance(await refusal_of(late), DeadlineExceeded)
        assert world.admission.num_waiting("m") == 0
    await world.ask("next")
    assert world.order == ["next"]


async def test_what_waits_too_long_for_a_model_without_a_replica_is_told_so() -> None:
    told = ModelNotReady("model 'm' is warming up")
    admission = Admission(AdmissionConfig(), lambda _: 0, not_ready=lambda request: told)
    with pytest.raises(ModelNotReady, match="warming up"):
        await _through(admission, a_request(timeout_s=0.02))
    assert admission.num_waiting("m") == 0


async def test_the_wait_is_taken_off_the_time_that_is_left() -> None:
    world = World()
    async with world.busy():
        task = asyncio.create_task(_through(world.admission, a_request(30.0)))
        await settle()
        world.now_s += 12.0
    admitted = await task
    assert admitted.timeout_s == pytest.approx(18.0)
    assert admitted.waited_s == pytest.approx(12.0)


@pytest.mark.parametrize("leaves_late", [False, True], ids=["while it waits", "as its turn comes"])
async def test_a_client_that_leaves_takes_no_room(leaves_late: bool) -> None:
    world = World()
    async with world.busy() as end_one:
        leaver, stayer = world.ask("leaver"), world.ask("stayer")
        await settle()
        if leaves_late:
            end_one()
            await asyncio.sleep(0)
        leaver.cancel()
        await asyncio.gather(leaver, return_exceptions=True)
    await stayer
    await world.ask("next")
    assert world.order[-2:] == ["stayer", "next"]


async def test_more_replicas_let_more_in_without_an_end() -> None:
    world = World()
    async with world.busy():
        task = world.ask("second")
        await settle()
        assert not world.order
        world.capacity = 2
        async with asyncio.timeout(30):
            await task
    assert world.order == ["second"]


async def test_a_thousand_requests_in_disorder_all_end() -> None:
    """Half of them leave at some time; nothing is left behind, and never do more run than may."""
    world = World(capacity=7, max_waiting_requests=1000)
    running = most = 0

    async def one(number: int) -> None:
        nonlocal running, most
        async with world.admission.admitted(a_request(), a_key(str(number % 13), number % 4)):
            running += 1
            most = max(most, running)
            try:
                for _ in range(number % 5):
                    await asyncio.sleep(0)
            finally:
                running -= 1

    tasks = [asyncio.create_task(one(number)) for number in range(1000)]
    for number, task in enumerate(tasks):
        if number % 2:
            for _ in range(number % 3):
                await asyncio.sleep(0)
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
    assert most <= 7
    assert world.admission.num_waiting("m") == 0
    async with world.busy(7):
        pass

"""Limits that several processes hold together, with a scripted clock and a ledger that comes and goes."""

import asyncio

import pytest

from serve_app.access.budget import Ask, Budget, Grant, Ledger
from serve_app.access.keys import Key
from serve_app.errors import RateLimited, Unanswered
from tests.scripted_clock import Clock


class Link:
    """The way to the ledger: counts what goes over it, and may be broken or slow."""

    def __init__(self, clock: Clock) -> None:
        self.ledger = Ledger(clock)
        self.asks: list[Ask] = []
        self.told, self.asked, self.may_answer = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.is_broken = self.is_slow = False

    async def lease(self, ask: Ask) -> Grant:
        await asyncio.sleep(0)
        if self.is_broken:
            raise Unanswered("gone")
        self.asked.set()
        if self.is_slow:
            await self.may_answer.wait()
        self.asks.append(ask)
        if ask.tokens:
            self.told.set()
        return self.ledger.grant(ask)


def a_key(**limits: int) -> Key:
    return Key(name="k", id="k", **limits)  # type: ignore[arg-type]  # whichever limits


async def passed(budgets: list[Budget], key: Key, num_requests: int) -> int:
    """Of so many requests, over all processes in turn, how many were let through."""
    count = 0
    for number in range(num_requests):
        try:
            await budgets[number % len(budgets)].take(key, requests=1)
            count += 1
        except RateLimited:
            pass
    return count


@pytest.mark.parametrize("limit", [1, 7, 60, 600, 6000])
async def test_several_processes_hold_one_limit_together(limit: int) -> None:
    clock = Clock(0.0)
    link = Link(clock)
    budgets = [Budget(link.lease, clock) for _ in range(3)]
    through = await passed(budgets, a_key(requests_per_minute=limit), 2 * limit + 30)
    stranded = 3 * (limit // 60)  # a second's worth in each process, at most
    assert limit - stranded <= through <= limit


async def test_a_key_with_a_high_limit_asks_seldom_and_one_without_never() -> None:
    clock = Clock(0.0)
    link = Link(clock)
    budget = Budget(link.lease, clock)
    assert await passed([budget], a_key(requests_per_minute=6000), 505) == 505
    assert len(link.asks) == 5
    await budget.take(a_key(), requests=1, images=100)
    assert len(link.asks) == 5


async def test_what_is_leased_lasts_two_seconds() -> None:
    clock = Clock(0.0)
    link = Link(clock)
    budget = Budget(link.lease, clock)
    key = a_key(requests_per_minute=600)
    await passed([budget], key, 2)
    clock.now_s += 3.0
    await passed([budget], key, 1)
    assert len(link.asks) == 2


async def test_the_refusal_says_when_it_would_pass() -> None:
    clock = Clock(0.0)
    budget = Budget(Link(clock).lease, clock)
    key = a_key(requests_per_minute=2)
    await passed([budget], key, 2)
    with pytest.raises(RateLimited) as raised:
        await budget.take(key, requests=1)
    assert raised.value.retry_after_s == pytest.approx(30.0)
    clock.now_s += 30.0
    await budget.take(key, requests=1)


async def test_tokens_made_in_one_process_count_in_the_other() -> None:
    clock = Clock(0.0)
    link = Link(clock)
    one, other = Budget(link.lease, clock), Budget(link.lease, clock)
    key = a_key(tokens_per_minute=100)
    await one.take(key, requests=1)
    one.spend_tokens(key, 90)
    one.spend_tokens(key, 60)
    await asyncio.wait_for(link.told.wait(), 30)
    for budget in (other, one):
        with pytest.raises(RateLimited, match="tokens"):
            await budget.take(key, requests=1)
    assert [ask.tokens for ask in link.asks if ask.tokens] == [150]  # none twice


async def test_tokens_made_while_the_ledger_is_gone_are_told_when_it_is_back() -> None:
    clock = Clock(0.0)
    link = Link(clock)
    link.is_broken = True
    one, other = Budget(link.lease, clock), Budget(link.lease, clock)
    key = a_key(tokens_per_minute=100)
    one.spend_tokens(key, 150)
    await asyncio.sleep(0.01)
    with pytest.raises(RateLimited, match="tokens"):
        await one.take(key, requests=1)  # it knows of its own
    link.is_broken = False
    clock.now_s += 6.0
    with pytest.raises(RateLimited, match="tokens"):
        await one.take(key, requests=1)
    with pytest.raises(RateLimited, match="tokens"):
        await other.take(key, requests=1)


async def test_who_leaves_while_the_ledger_is_asked_loses_no_tokens_of_the_key() -> None:
    clock = Clock(0.0)
    link = Link(clock)
    link.is_broken = True
    budget = Budget(link.lease, clock)
    key = a_key(tokens_per_minute=100, requests_per_minute=600)
    budget.spend_tokens(key, 250)  # it can't be told yet
    await asyncio.sleep(0.01)
    link.is_broken, link.is_slow = False, True
    clock.now_s += 6.0
    leaver = asyncio.create_task(budget.take(key, requests=1))
    await link.asked.wait()
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    assert leaver.cancelled()
    link.may_answer.set()
    await asyncio.wait_for(link.told.wait(), 30)
    assert [ask.tokens for ask in link.asks] == [250]
    with pytest.raises(RateLimited, match="tokens"):
        await Budget(link.lease, clock).take(key, requests=1)


async def test_what_was_leased_for_one_who_left_is_there_for_the_next() -> None:
    clock = Clock(0.0)
    link = Link(clock)
    link.is_slow = True
    budget = Budget(link.lease, clock)
    key = a_key(requests_per_minute=600)
    leaver = asyncio.create_task(budget.take(key, requests=1))
    await link.asked.wait()
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    link.may_answer.set()
    await asyncio.sleep(0.01)
    assert await passed([budget], key, 10) == 10
    assert len(link.asks) == 1


async def test_a_request_of_many_answers_counts_as_many_and_passes_once_however_many() -> None:
    clock = Clock(0.0)
    budget = Budget(Link(clock).lease, clock)
    key = a_key(requests_per_minute=30)
    await budget.take(key, requests=1)
    await budget.take(key, requests=7, counted=1)
    with pytest.raises(RateLimited) as raised:
        await budget.take(key, requests=29)
    assert raised.value.retry_after_s == pytest.approx(14.0)


@pytest.mark.parametrize("limit", [1, 30, 600, 6000])
async def test_a_request_of_more_answers_than_a_minute_has_passes_when_nothing_else_was_asked(limit: int) -> None:
    clock = Clock(0.0)
    budget = Budget(Link(clock).lease, clock)
    key = a_key(requests_per_minute=limit)
    for _ in range(2):
        await budget.take(key, requests=1)
        await budget.take(key, requests=9999, counted=1)
        clock.now_s += 3.0
        with pytest.raises(RateLimited) as raised:
            await budget.take(key, requests=1)
        assert raised.value.retry_after_s == pytest.approx((10_001 - limit) / limit * 60.0 - 3.0, abs=1.1)
        clock.now_s += 10_000 / limit * 60.0


async def test_images_are_asked_for_each_time() -> None:
    clock = Clock(0.0)
    budgets = [Budget(link.lease, clock) for link in [Link(clock)] for _ in range(2)]
    key = a_key(images_per_minute=10)
    await budgets[0].take(key, images=6)
    with pytest.raises(RateLimited, match="images"):
        await budgets[1].take(key, images=6)
    await budgets[1].take(key, images=4)


async def test_without_the_ledger_each_process_counts_alone_and_then_finds_it_again() -> None:
    clock = Clock(0.0)
    link = Link(clock)
    link.is_broken = True
    budgets = [Budget(link.lease, clock), Budget(link.lease, clock)]
    key = a_key(requests_per_minute=5)
    assert await passed(budgets, key, 30) == 10  # each its own five
    link.is_broken = False
    clock.now_s += 6.0
    await budgets[0].take(key, requests=1)
    assert len(link.asks) == 1


async def test_a_ledger_that_hangs_holds_nothing_up() -> None:
    async def hang(_: Ask) -> Grant:
        await asyncio.sleep(3600)
        raise AssertionError("unreachable")

    budget = Budget(hang)
    async with asyncio.timeout(30):
        await budget.take(a_key(requests_per_minute=5), requests=1)


async def test_many_at_once_never_get_more_than_there_is() -> None:
    clock = Clock(0.0)
    link = Link(clock)
    budget = Budget(link.lease, clock)
    key = a_key(requests_per_minute=120)
    results = await asyncio.gather(*(budget.take(key, requests=1) for _ in range(400)), return_exceptions=True)
    assert sum(isinstance(result, dict) for result in results) <= 120
    assert {type(result) for result in results} == {dict, RateLimited}


async def test_a_burst_leases_once_and_leaves_the_key_its_minute() -> None:
    clock = Clock(0.0)
    link = Link(clock)
    link.is_slow = True
    budget = Budget(link.lease, clock)
    key = a_key(requests_per_minute=6000)
    burst = [asyncio.create_task(budget.take(key, requests=1)) for _ in range(100)]
    await asyncio.sleep(0.01)
    link.may_answer.set()
    await asyncio.gather(*burst)
    assert [ask.more_requests for ask in link.asks if ask.more_requests] == [100]
    assert await passed([budget], key, 6000) == 5900


async def test_what_is_left_of_a_lease_is_there_beside_the_next() -> None:
    clock = Clock(0.0)
    budget = Budget(Link(clock).lease, clock)
    key = a_key(requests_per_minute=600)
    await passed([budget], key, 1)
    for _ in range(2):
        await budget.take(key, requests=8)  # 2 of the lease of 10 are left when it asks for 8 more
    assert await passed([budget], key, 600) == 583


async def test_a_lease_that_failed_is_asked_for_again() -> None:
    clock = Clock(0.0)
    link = Link(clock)
    link.is_broken = True
    budget = Budget(link.lease, clock)
    key = a_key(requests_per_minute=600)
    await passed([budget], key, 1)
    link.is_broken = False
    clock.now_s += 6.0
    await passed([budget], key, 5)
    assert [ask.more_requests for ask in link.asks] == [10]

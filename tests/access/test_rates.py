"""Limits of API keys: how much passes in a minute, for how long the rest waits, and what clients are told."""

import random

import pytest

from serve_app.access.keys import Key
from serve_app.access.rates import Rates, duration
from serve_app.errors import RateLimited
from tests.scripted_clock import Clock

FREE = Key(name="free", id="0" * 12)
TEN = Key(name="ten", id="1" * 12, requests_per_minute=10)
ALL = Key(name="all", id="2" * 12, requests_per_minute=60, tokens_per_minute=6000, images_per_minute=30)


@pytest.fixture
def clock() -> Clock:
    return Clock(5000.0)


@pytest.fixture
def rates(clock: Clock) -> Rates:
    return Rates(clock)


def wait_s(rates: Rates, key: Key, requests: int = 1, images: int = 0) -> float:
    """For how long the request is refused; 0 where it passes."""
    try:
        rates.take(key, requests, images)
    except RateLimited as error:
        return error.retry_after_s or 0.0
    return 0.0


def test_a_key_without_limits_has_none(rates: Rates) -> None:
    assert not any(wait_s(rates, FREE, 1, 100) for _ in range(1000))
    rates.spend_tokens(FREE, 10**9)
    assert wait_s(rates, FREE) == 0
    assert rates.headers(FREE) == {}


def test_a_minutes_worth_passes_at_once_and_then_as_it_refills(rates: Rates, clock: Clock) -> None:
    assert [wait_s(rates, TEN) for _ in range(10)] == [0] * 10
    assert wait_s(rates, TEN) == pytest.approx(6)
    clock.now_s += 2
    assert wait_s(rates, TEN) == pytest.approx(4)
    clock.now_s += 4
    assert wait_s(rates, TEN) == 0
    assert wait_s(rates, TEN, requests=3) == pytest.approx(18)
    clock.now_s += 3600  # never more than a minute's worth
    assert [wait_s(rates, TEN) for _ in range(11)][-2:] == [0, pytest.approx(6)]


def test_a_refusal_names_the_limit_and_counts_nothing(rates: Rates, clock: Clock) -> None:
    for _ in range(10):
        rates.take(TEN, 1, 0)
    clock.now_s += 5
    for _ in range(100):
        with pytest.raises(
            RateLimited, match=r"the limit of 10 requests a minute is reached for the key 'ten'.*1\.0 s"
        ):
            rates.take(TEN, 1, 0)
    clock.now_s += 1
    rates.take(TEN, 1, 0)
    rates.take(ALL, 1, 30)
    with pytest.raises(RateLimited, match="30 images a minute") as raised:
        rates.take(ALL, 1, 1)
    assert raised.value.param is None
    assert raised.value.retry_after_s == pytest.approx(2)
    assert rates.headers(ALL)["x-ratelimit-remaining-requests"] == "59"  # the refused one isn't among them


def test_the_longest_wait_is_the_one_told(rates: Rates) -> None:
    rates.take(ALL, 60, 30)
    rates.spend_tokens(ALL, 9000)
    with pytest.raises(RateLimited, match="6,000 tokens a minute") as raised:
        rates.take(ALL, 1, 1)
    assert raised.value.retry_after_s == pytest.approx(30)


@pytest.mark.parametrize("seed", range(20))
def test_whoever_waits_as_told_passes(rates: Rates, clock: Clock, seed: int) -> None:
    """To the last digit of a float, at any moment, with any amounts."""
    lots = random.Random(seed)
    clock.now_s = lots.uniform(0, 1e7)
    for _ in range(300):
        clock.now_s += lots.expovariate(1)
        rates.spend_tokens(ALL, lots.randrange(300))
        requests, images = lots.randrange(1, 4), lots.randrange(40)
        if waited_s := wait_s(rates, ALL, requests, images):
            clock.now_s += waited_s * 0.99
            assert wait_s(rates, ALL, requests, images) > 0
            clock.now_s += waited_s * 0.01
            assert wait_s(rates, ALL, requests, images) == 0


def test_over_an_hour_no_more_passes_than_allowed(rates: Rates, clock: Clock) -> None:
    passed = 0
    for _ in range(36_000):
        clock.now_s += 0.1
        passed += not wait_s(rates, TEN)
    assert 609 <= passed <= 611  # ten a minute for an hour, and the first minute's ten


def test_tokens_go_into_debt_that_the_next_request_waits_out(rates: Rates, clock: Clock) -> None:
    rates.take(ALL, 1, 0)
    rates.spend_tokens(ALL, 12_000)
    assert wait_s(rates, ALL) == pytest.approx(60)
    clock.now_s += 60
    assert wait_s(rates, ALL) == 0
    rates.spend_tokens(ALL, 600)
    assert wait_s(rates, ALL) == pytest.approx(6)


def test_more_images_than_a_minutes_worth_pass_alone(rates: Rates, clock: Clock) -> None:
    rates.take(ALL, 1, 1)
    assert wait_s(rates, ALL, images=90) == pytest.approx(2)
    clock.now_s += 2
    assert wait_s(rates, ALL, images=90) == 0
    assert wait_s(rates, ALL, images=1) == pytest.approx(122)
    assert wait_s(rates, ALL, images=0) == 0  # a text waits for no image


def test_keys_do_not_touch_each_other(rates: Rates) -> None:
    other = Key(name="other", id="3" * 12, requests_per_minute=10)
    assert [wait_s(rates, TEN) for _ in range(11)][-1] > 0
    assert wait_s(rates, other) == 0


def test_a_changed_limit_holds_at_once(rates: Rates, clock: Clock) -> None:
    for _ in range(10):
        rates.take(TEN, 1, 0)
    more = Key(name="ten", id="9" * 12, requests_per_minute=600)
    clock.now_s += 6
    assert [wait_s(rates, more) for _ in range(61)].count(0) == 60
    assert wait_s(rates, Key(name="ten", id="1" * 12)) == 0


def test_accounts_are_dropped_once_they_are_whole_again(rates: Rates, clock: Clock) -> None:
    for number in range(1000):
        rates.take(Key(name=f"k{number}", id="0" * 12, requests_per_minute=10), 1, 0)
    rates.spend_tokens(ALL, 60_000)
    assert rates.num_accounts == 1001
    clock.now_s += 61
    rates.headers(TEN)
    assert rates.num_accounts == 2  # this one, and the one in debt
    assert wait_s(rates, ALL) == pytest.approx(479)
    clock.now_s += 3600
    rates.headers(TEN)
    assert rates.num_accounts == 1


def test_headers_are_openais(rates: Rates, clock: Clock) -> None:
    rates.take(ALL, 1, 2)
    rates.spend_tokens(ALL, 12_000)
    assert rates.headers(ALL) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "2m0s",
        "x-ratelimit-limit-images": "30",
        "x-ratelimit-remaining-images": "28",
        "x-ratelimit-reset-images": "4s",
    }
    clock.now_s += 0.75
    assert rates.headers(ALL)["x-ratelimit-reset-requests"] == "250ms"
    assert [name for name in rates.headers(TEN) if "requests" not in name] == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (0, "0s"), (0.0004, "0s"), (0.25, "250ms"), (0.9999, "1s"), (1, "1s"), (1.5, "1.5s"),
     (59.9999, "1m0s"), (60, "1m0s"), (61.25, "1m1.25s"), (360, "6m0s"), (36_000, "600m0s")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_clock_that_goes_back_takes_nothing(rates: Rates, clock: Clock) -> None:
    rates.take(TEN, 1, 0)
    clock.now_s -= 1000
    assert rates.headers(TEN)["x-ratelimit-remaining-requests"] == "9"

"""What engines say of their load, and how many replicas that asks for."""

from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.config.autoscaling import EnginePressurePolicy
from serve_app.metrics.snapshot import Waiting
from serve_app.replica.pressure import WINDOW_S, Elsewhere, FirstTokenClock
from tests.scripted_clock import Clock


def test_waits_count_while_they_last_and_for_a_while_after() -> None:
    now = Clock(100.0)
    clock = FirstTokenClock(now)
    assert clock.seconds() == 0
    with clock.waiting() as has_token:
        now.now_s += 4
        assert clock.seconds() == 4, "it still waits"
        has_token()
        now.now_s += 1
        has_token()  # of later chunks: counts nothing
        assert clock.seconds() == 4
    with clock.waiting() as has_token:
        now.now_s += 2
        has_token()
    assert clock.seconds() == 3, "the mean of both"
    now.now_s += WINDOW_S + 1
    assert clock.seconds() == 0


def test_a_request_that_ends_without_a_token_waits_no_longer() -> None:
    now = Clock(100.0)
    clock = FirstTokenClock(now)
    with clock.waiting():
        now.now_s += 30
    assert clock.seconds() == 0


def test_the_wait_for_a_turn_is_a_part_of_it() -> None:
    now = Clock(100.0)
    clock = FirstTokenClock(now)
    with clock.waiting(), clock.waiting(waited_s=7) as has_token:
        now.now_s += 1
        assert clock.seconds() == 8, "the one that came first"
        has_token()
    assert clock.seconds() == 8


def test_what_waits_in_the_ingresses_is_told_until_nobody_says_so_any_more() -> None:
    now = Clock(100.0)
    elsewhere = Elsewhere(now)
    nothing = {"requests_in_ingresses": 0, "waiting_tokens_in_ingresses": 0}
    assert elsewhere.pressure() == nothing
    elsewhere.report(Waiting(40, 900))
    now.now_s += 9
    assert elsewhere.pressure() == {"requests_in_ingresses": 40, "waiting_tokens_in_ingresses": 900}
    now.now_s += 2
    assert elsewhere.pressure() == nothing


def context(num_replicas: int, num_requests: float, **measures: list[float]) -> Any:
    return SimpleNamespace(
        current_num_replicas=num_replicas,
        target_num_replicas=num_replicas,
        total_num_requests=num_requests,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: 10.0),
        aggregated_metrics={name: dict(enumerate(values)) for name, values in measures.items()},
    )


TARGETS = {"waiting_tokens": 1000.0, "kv_cache_use": 0.8, "time_to_first_token_s": 2.0}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (context(1, 5), 1),
        (context(1, 35), 4),  # requests alone
        (context(2, 5, waiting_tokens=[3000, 1000]), 4),
        (context(2, 15, kv_cache_use=[0.9, 0.9]), 3),
        (context(2, 15, kv_cache_use=[0.1, 0.1], time_to_first_token_s=[5, 5]), 3),  # one more at a time
        (context(3, 5, time_to_first_token_s=[1.5, 1.5, 1.5]), 3),  # late enough to let none go
        (context(3, 5, time_to_first_token_s=[0.1, 0.1, 0.1]), 1),
        (context(1, 12, requests_in_ingresses=[30]), 5),  # 42 in all, 12 of which Ray Serve sees
        (context(2, 20, requests_in_ingresses=[30, 25]), 5),  # each replica tells of the same ones
        (context(1, 5, waiting_tokens=[500], waiting_tokens_in_ingresses=[2000]), 3),
        (context(3, 19.5), 3),  # two would be so full that the third came back
        (context(3, 17), 2),
        (context(0, 5), 0),  # Ray Serve itself wakes the first
    ],
)
def test_the_greatest_need_decides(given: Any, wanted: int) -> None:
    assert EnginePressurePolicy(TARGETS)(given) == (wanted, {})


def test_what_has_no_target_is_not_looked_at() -> None:
    given = context(1, 5, waiting_tokens=[9e9], kv_cache_use=[1.0], time_to_first_token_s=[99])
    assert EnginePressurePolicy({})(given) == (1, {})

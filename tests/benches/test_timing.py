"""What the serving benchmark makes of timestamps."""

from statistics import quantiles

import pytest

from benchmarks.serving import guidellm_client
from benchmarks.serving.public_client import requests_of
from benchmarks.serving.timing import Request, percentile, summarize


def request(begun_s: float, *times_s: float, num_tokens: int | None = None, error: str | None = None) -> Request:
    ended_s = times_s[-1] if times_s else begun_s
    return Request(begun_s, times_s, ended_s, len(times_s) if num_tokens is None else num_tokens, 3, error)


def test_percentiles_lie_between_ranks_as_numpy_has_them() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(values, percent) for percent in (0, 50, 90, 100)] == [1, 3, pytest.approx(4.6), 5]
    assert [percentile(values, percent) for percent in (25, 50, 75)] == quantiles(values, n=4, method="inclusive")


def test_statistics_come_from_timestamps() -> None:
    told = summarize([request(10.0, 10.1, 10.2, 10.4), request(10.5, 10.7, 10.8, 11.0)])
    assert (told.num_requests, told.num_failed, told.num_tokens) == (2, 0, 6)
    assert told.duration_s == pytest.approx(1.0)
    assert told.tokens_per_s == pytest.approx(6.0)
    assert told.requests_per_s == pytest.approx(2.0)
    assert told.first_token_ms is not None
    assert told.first_token_ms.median == pytest.approx(150)
    assert told.inter_token_ms is not None
    assert told.inter_token_ms.median == pytest.approx(150)
    assert told.inter_token_ms.p99 == pytest.approx(200)
    assert told.end_to_end_ms is not None
    assert told.end_to_end_ms.median == pytest.approx(450)


def test_an_answer_with_another_number_of_tokens_fails_and_counts_in_no_rate() -> None:
    short = request(10.0, 10.1, 10.2, num_tokens=2)
    told = summarize([request(10.0, 10.1, 10.2, 10.5), short, request(10.0, error="HTTP 503"), request(10.0)])
    assert told.num_failed == 3
    assert told.failures == {"2 tokens instead of 3": 1, "HTTP 503": 1, "an empty answer": 1}
    assert told.num_tokens == 3
    assert told.requests_per_s == pytest.approx(2.0)


def test_tokens_that_came_joined_are_told() -> None:
    told = summarize([request(0.0, 0.1, num_tokens=3)])
    assert told.tokens_per_event == 3
    assert told.inter_token_ms is None


def test_nothing_right_is_no_division_by_zero() -> None:
    told = summarize([Request(0.0, (), 0.5, 0, 3, "HTTP 500")])
    assert (told.tokens_per_s, told.tokens_per_event, told.first_token_ms) == (0, 0, None)


def test_the_public_clients_lists_become_requests() -> None:
    told = {
        "start_times": [100.0, 101.0], "ttfts": [0.5, 0.0], "itls": [[0.1, 0.2], []], "latencies": [0.8, 0.0],
        "output_lens": [3, 0], "errors": ["", "Service Unavailable"],
    }  # fmt: skip
    right, wrong = requests_of(told, 3)
    assert right.event_times_s == pytest.approx((100.5, 100.6, 100.8))
    assert right.ended_s == pytest.approx(100.8)
    assert right.failure is None
    assert wrong.failure == "Service Unavailable"


def test_guidellms_report_becomes_requests() -> None:
    def told(error: str | None, **timings: float | None) -> dict[str, object]:
        names = ("request_start", "first_token_iteration", "last_token_iteration", "request_end", "resolve_end")
        known: dict[str, float | None] = dict.fromkeys(names) | timings
        num_tokens = 3 if error is None else None
        return {"info": {"timings": known, "error": error}, "output_metrics": {"total_tokens": num_tokens}}

    good = told(None, request_start=100.0, first_token_iteration=100.5, last_token_iteration=100.9, request_end=101.0)
    bad = told("HTTPStatusError: 503", request_start=100.0, resolve_end=100.1)
    report = {"successful": [good], "errored": [bad], "incomplete": None}
    right, wrong = guidellm_client.requests_of(report, 3, clock_offset_s=-90.0)
    assert right.begun_s == pytest.approx(10.0)
    assert right.event_times_s == pytest.approx((10.5, 10.7, 10.9))
    assert right.failure is None
    assert wrong.failure == "HTTPStatusError: 503"
    assert wrong.ended_s == pytest.approx(10.1)

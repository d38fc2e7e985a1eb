"""From timestamps to statistics: what a client saw of each request, and what that makes in all.

Knows nothing of HTTP and nothing of systems. Times are seconds on the machine's monotonic clock.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """One request as its client saw it.

    `event_times_s` are the events that carried tokens; an answer that isn't streamed is one. `num_wanted` is how many
    tokens were asked for; None where the model decides.
    """

    begun_s: float
    event_times_s: tuple[float, ...]
    ended_s: float
    num_tokens: int
    num_wanted: int | None
    error: str | None = None
    answer: str | None = None

    @property
    def failure(self) -> str | None:
        """Why this request doesn't count; an answer with another number of tokens is none."""
        if self.error is not None:
            return self.error
        if not self.event_times_s or not self.num_tokens:
            return "an empty answer"
        if self.num_wanted is not None and self.num_tokens != self.num_wanted:
            return f"{self.num_tokens} tokens instead of {self.num_wanted}"
        return None


@dataclass(frozen=True, slots=True)
class Quantiles:
    """In milliseconds."""

    median: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of one cell. Rates are over the time from the first request's begin to the last one's end."""

    num_requests: int
    num_failed: int
    failures: dict[str, int]
    duration_s: float
    num_tokens: int
    tokens_per_s: float
    requests_per_s: float
    tokens_per_event: float
    first_token_ms: Quantiles | None
    inter_token_ms: Quantiles | None
    end_to_end_ms: Quantiles | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def percentile(values: Sequence[float], percent: float) -> float:
    """Between the two nearest ranks, linearly, as numpy and `vllm bench serve` do. `values` must not be empty."""
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    below, above = math.floor(rank), math.ceil(rank)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def quantiles_ms(seconds: Sequence[float]) -> Quantiles | None:
    """None where there is nothing to tell, as between the tokens of answers that came whole."""
    if not seconds:
        return None
    return Quantiles(*(round(1000 * percentile(seconds, percent), 3) for percent in (50, 90, 99)))


def summarize(requests: Sequence[Request]) -> Statistics:
    """The statistics of these requests; failed ones count as such and in nothing else. Needs one request at least."""
    right = [request for request in requests if request.failure is None]
    failures = Counter(request.failure for request in requests if request.failure is not None)
    begun_s = min(request.begun_s for request in requests)
    duration_s = max(1e-6, max(request.ended_s for request in requests) - begun_s)
    num_tokens = sum(request.num_tokens for request in right)
    num_events = sum(len(request.event_times_s) for request in right)
    pauses = [after - before for request in right for before, after in pairwise(request.event_times_s)]
    return Statistics(
        num_requests=len(requests),
        num_failed=len(requests) - len(right),
        failures=dict(failures.most_common(5)),
        duration_s=round(duration_s, 4),
        num_tokens=num_tokens,
        tokens_per_s=round(num_tokens / duration_s, 2),
        requests_per_s=round(len(right) / duration_s, 3),
        tokens_per_event=round(num_tokens / num_events, 3) if num_events else 0.0,
        first_token_ms=quantiles_ms([request.event_times_s[0] - request.begun_s for request in right]),
        inter_token_ms=quantiles_ms(pauses),
        end_to_end_ms=quantiles_ms([request.ended_s - request.begun_s for request in right]),
    )

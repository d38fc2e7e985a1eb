"""How often a stream is written to: by its interval alone, or by what all of them may make together."""

import pytest

from serve_app.api.pace import Pace


def test_without_a_bound_the_interval_holds_for_any_number() -> None:
    pace = Pace(0.02)
    with pace.stream(), pace.stream():
        assert pace.interval_s == 0.02
    assert Pace(0.0).interval_s == 0


@pytest.mark.parametrize(("num_streams", "interval_s"), [(0, 0.02), (1, 0.02), (10, 0.1), (20, 0.2), (1000, 0.25)])
def test_many_streams_share_the_writes(num_streams: int, interval_s: float) -> None:
    pace = Pace(0.02, max_writes_per_s=100)
    streams = [pace.stream() for _ in range(num_streams)]
    for stream in streams:
        stream.__enter__()
    assert pace.interval_s == pytest.approx(interval_s)
    for stream in streams:
        stream.__exit__(None, None, None)
    assert pace.interval_s == 0.02, "those that ended count no more"


def test_a_stream_that_fails_counts_no_more() -> None:
    pace = Pace(0.0, max_writes_per_s=100)
    with pytest.raises(OSError, match="gone"), pace.stream():
        raise OSError("gone")
    assert pace.interval_s == 0

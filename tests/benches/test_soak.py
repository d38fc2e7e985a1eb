"""The soak: what it calls a broken promise, and, slowly, that the service keeps all of them for a while."""

from pathlib import Path

import pytest

from benchmarks.soak import Fault, Run, Seen, unaccounted
from benchmarks.soak_processes import Bounds, Size, grown

ROOT = Path(__file__).parent.parent.parent


def problems(*seen: Seen, num_begun: int | None = None) -> list[str]:
    """Of a run in which the ingress was gone from 10 to 20 s, and the model with a lane from 30 to 40."""
    faults = [Fault("ingress:Ingress", 10, 20), Fault("script:Model", 30, 40)]
    return unaccounted(Run(num_begun=len(seen) if num_begun is None else num_begun, seen=list(seen), faults=faults))


@pytest.mark.parametrize(
    ("lane", "begun_s", "ended_s", "is_explained"),
    [
        ("", 12, 13, True),
        ("", 5, 11, True),
        ("", 19, 30, True),
        ("", 1, 5, False),
        ("", 25, 26, False),
        ("", 32, 33, False),
        ("/models/script", 32, 33, True),
        ("/models/script", 12, 13, False),
    ],
)
def test_a_connection_may_be_lost_only_where_its_own_way_was_cut(
    lane: str, begun_s: float, ended_s: float, is_explained: bool
) -> None:
    assert (not problems(Seen("echo", lane, "lost", "ReadError", begun_s, ended_s))) == is_explained


def test_a_wrong_answer_and_a_request_without_an_end_are_problems() -> None:
    assert problems(Seen("echo", "", "wrong", "said 'x'", 12, 13))
    assert problems(Seen("echo", "", "answered", "", 1, 2), num_begun=2)
    assert not problems(Seen("echo", "", "answered", "", 1, 2))


def test_what_grew_beyond_its_bounds_is_a_problem() -> None:
    bounds = Bounds(megabytes=10, descriptors=10, processes=1)
    before = {"proxy": Size(1, 50, 100), "other": Size(5, 100, 500)}
    assert grown(before, before, bounds) == []
    for after in (Size(2, 50, 100), Size(0, 0, 0), Size(1, 61, 100), Size(1, 50, 111)):
        assert len(grown(before, before | {"proxy": after}, bounds)) == 1
    assert len(grown(before, before | {"other": Size(7, 100, 500)}, bounds)) == 1

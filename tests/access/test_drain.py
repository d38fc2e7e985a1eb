"""How soon a full model's queue moves on, told by what ended while it was full."""

import pytest

from serve_app.access.drain import Drain


def drain(*seconds: float, at_s: float = 0.0, num_places: int = 4) -> Drain:
    told = Drain()
    for one in seconds:
        told.ended(at_s, one, num_places)
    return told


@pytest.mark.parametrize("seconds", [(), (1.0,), (1.0, 1.0)])
def test_few_ends_tell_nothing(seconds: tuple[float, ...]) -> None:
    assert drain(*seconds).seconds_until_free(0.0, 100, 4) is None


@pytest.mark.parametrize("idle_s", [0.0, 1.0, 28.0])
def test_time_in_which_nothing_was_asked_makes_nothing_slower(idle_s: float) -> None:
    assert drain(1.0, 2.0, 3.0).seconds_until_free(idle_s, 10, 4) == pytest.approx(5.0)


def test_what_is_long_ago_is_forgotten_but_for_long_requests() -> None:
    assert drain(1.0, 1.0, 1.0).seconds_until_free(31.0, 10, 4) is None
    assert drain(*[20.0] * 3).seconds_until_free(61.0, 10, 4) == pytest.approx(50.0)
    assert drain(*[20.0] * 3).seconds_until_free(81.0, 10, 4) is None


def test_new_replicas_count_at_once_and_lost_ones_by_and_by() -> None:
    assert drain(*[2.0] * 8).seconds_until_free(0.0, 16, 16) == pytest.approx(2.0)
    assert drain(*[2.0] * 8).seconds_until_free(0.0, 16, 1) == pytest.approx(8.0)


def test_the_usual_time_is_the_median() -> None:
    assert drain(1.0, 2.0, 90.0).usual_seconds(0.0) == 2.0
    assert drain().usual_seconds(0.0) == 0.0


@pytest.mark.parametrize(("room_s", "is_known"), [(1.0, True), (31.0, False)])
def test_what_was_before_a_long_time_with_room_is_forgotten(room_s: float, is_known: bool) -> None:
    told = drain(*[100.0] * 3)
    told.has_room_from(0.0)
    told.is_full_from(room_s)
    assert (told.seconds_until_free(room_s, 10, 4) is not None) == is_known


def test_a_full_model_whose_answers_take_long_is_known_for_long() -> None:
    told = drain(*[100.0] * 3)
    told.has_room_from(0.0)
    told.is_full_from(0.0)
    told.is_full_from(200.0)
    assert told.seconds_until_free(200.0, 10, 4) == pytest.approx(250.0)

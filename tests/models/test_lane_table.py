"""The table that HAProxy chooses lanes by: a name is in it where the lane would answer as the ingress does."""

from dataclasses import replace

import pytest
from ray.serve._private.haproxy import HAProxyManager

from serve_app.messages import ModelDescription
from serve_app.models.entry import ModelEntry
from serve_app.models.lane_table import backend_name, lane_table

OWN = "the same rules"
TALKS = ModelDescription(("chat",), "scripted", "generic", 100, takes_images=False, http=OWN, balancing="affinity")
SEES = replace(TALKS, tasks=("chat", "caption"), takes_images=True, balancing="power_of_two")
TALK = ModelEntry("talk", "ready", description=TALKS, num_replicas=1)
SEE = ModelEntry("see", "ready", description=SEES, num_replicas=2)


def table(*entries: ModelEntry, stand_ins: tuple[str, ...] = ()) -> list[str]:
    return lane_table(entries, lambda entry: entry.is_ready, stand_ins, OWN).splitlines()


def test_a_model_is_there_for_the_tasks_that_it_does() -> None:
    assert table(TALK, SEE) == [
        "chat\ttalk\t= 1 http-talk affinity",
        "chat\tsee\t= 1 http-see power_of_two",
        "caption\tsee\t= 1 http-see power_of_two",
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "loading"}, {"state": "scaled_to_zero", "num_replicas": 0}, {"state": "failed"},
        {"state": "unhealthy"}, {"num_replicas": 0}, {"description": None},
        {"description": replace(SEES, http="others")}, {"description": replace(SEES, http=None)},
    ],
)  # fmt: skip
def test_what_the_ingress_has_to_say_more_about_is_its_own(changes: dict[str, object]) -> None:
    assert table(replace(SEE, **changes)) == []  # type: ignore[arg-type]


def test_an_adapter_leads_to_its_base() -> None:
    adapter = replace(TALK, name="talk-polite", base="talk")
    assert table(TALK, adapter)[1] == "chat\ttalk-polite\t= 1 http-talk affinity"


def test_an_alias_has_the_weights_of_those_that_the_ingress_would_draw_from() -> None:
    asleep = replace(SEE, name="asleep", state="scaled_to_zero", num_replicas=0)
    broken = replace(SEE, name="broken", state="failed")
    weights = {"talk": 90.0, "see": 9.5, "asleep": 0.5, "broken": 50.0, "spare": 0.0}
    alias = replace(SEE, name="vlm", weights=weights)
    lines = table(TALK, SEE, asleep, broken, replace(SEE, name="spare"), alias)
    assert "chat\tvlm\ttalk 90 http-talk affinity\tsee 9.5 http-see power_of_two\tasleep 0.5 - -" in lines
    assert "caption\tvlm\tsee 9.5 http-see power_of_two\tasleep 0.5 - -" in lines
    only_asleep = replace(SEE, name="vlm", weights={"asleep": 1.0})
    assert not any("vlm" in line for line in table(asleep, only_asleep))


def test_a_stand_in_means_the_default_where_no_image_changes_which_that_is() -> None:
    assert table(SEE, TALK, stand_ins=("tgi", "talk"))[2:] == [
        "chat\ttgi\tsee 1 http-see power_of_two", "caption\tsee\t= 1 http-see power_of_two",
        "caption\ttgi\tsee 1 http-see power_of_two",
    ]  # fmt: skip
    assert table(TALK, SEE, stand_ins=("tgi",))[2:] == [
        "caption\tsee\t= 1 http-see power_of_two", "caption\ttgi\tsee 1 http-see power_of_two",
    ]  # fmt: skip
    assert not any("tgi" in line for line in table(replace(SEE, state="loading"), stand_ins=("tgi",)))


def test_models_that_haproxy_knows_by_one_name_have_no_lane() -> None:
    one, other = replace(TALK, name="a/b"), replace(TALK, name="a.b")
    assert table(one, other) == []
    assert table(one) == ["chat\ta/b\t= 1 http-a.b affinity"]


@pytest.mark.parametrize("name", ["demo", "a/b", "A.b_c-d", "qwen2.5-3b"])
def test_a_backend_has_ray_serves_name_for_it(name: str) -> None:
    assert backend_name(name) == HAProxyManager.get_safe_name(f"http-{name}")

"""A model's state and reason, from what Ray Serve says of its application; and the choice of a model."""

import asyncio
import threading
from collections import Counter
from dataclasses import replace
from typing import Any, cast

import pytest
from pydantic import ValidationError
from ray.serve._private.common import ReplicaState
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
)

from serve_app.access.keys import Key
from serve_app.config.applications import ModelConfig, RoutingConfig
from serve_app.config.http import HttpConfig
from serve_app.errors import ModelNotReady, UnknownModel, UnsupportedTask
from serve_app.exchange.lane import Lane
from serve_app.messages import ModelDescription
from serve_app.models import descriptions
from serve_app.models.catalog import Catalog
from serve_app.models.entry import ModelEntry, State
from serve_app.models.serve_states import STARTING, last_line, model_state
from serve_app.placement import cluster
from serve_app.placement.cluster import Declaration

TRACEBACK = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica (pid=1)
  File "/somewhere/secret/app.py", line 3, in __init__
serve_app.errors.ConfigError: model 'm': source '/nowhere': there is no folder; correct the path
"""


def refusal(**args: Any) -> str:
    """Ray Serve's words for a model's args that don't validate, with pydantic's own error in them."""
    with pytest.raises(ValidationError) as raised:
        ModelConfig.model_validate({"source": "demo", **args})
    return (
        "Deploying app 'm' failed with exception:\n"
        '  File "/somewhere/secret/main.py", line 792, in model_validate\n'
        f"pydantic_core._pydantic_core.ValidationError: {raised.value}\n"
    )


def overview(
    status: ApplicationStatus, deployment: DeploymentStatus, running: int = 0, message: str = ""
) -> ApplicationStatusOverview:
    states = {ReplicaState.RUNNING: running} if running else {}
    trigger = DeploymentStatusTrigger.UNSPECIFIED
    model = DeploymentStatusOverview(deployment, trigger, states, message)
    return ApplicationStatusOverview(status, "", 1.0, {"Model": model})


@pytest.mark.parametrize(
    ("given", "state", "reason"),
    [
        (overview(ApplicationStatus.RUNNING, DeploymentStatus.HEALTHY, 1), "ready", None),
        (overview(ApplicationStatus.UNHEALTHY, DeploymentStatus.UNHEALTHY, 1), "ready", None),
        (overview(ApplicationStatus.RUNNING, DeploymentStatus.HEALTHY), "scaled_to_zero", None),
        (overview(ApplicationStatus.DEPLOYING, DeploymentStatus.UPDATING), "loading", "its replica is starting"),
        (
            overview(ApplicationStatus.DEPLOYING, DeploymentStatus.UPDATING, 0, "it waits to be scheduled: no GPU"),
            "pending", "it waits to be scheduled: no GPU",
        ),
        (overview(ApplicationStatus.UNHEALTHY, DeploymentStatus.UNHEALTHY, 0, "it died"), "unhealthy", "it died"),
        (
            overview(ApplicationStatus.DEPLOY_FAILED, DeploymentStatus.DEPLOY_FAILED, 1, TRACEBACK), "ready",
            "the last deploy failed, and the one before serves: "
            "model 'm': source '/nowhere': there is no folder; correct the path",
        ),
        (
            overview(ApplicationStatus.DEPLOY_FAILED, DeploymentStatus.DEPLOY_FAILED, 0, TRACEBACK),
            "failed", "model 'm': source '/nowhere': there is no folder; correct the path",
        ),
    ],
)  # fmt: skip
def test_states(given: ApplicationStatusOverview, state: State, reason: str | None) -> None:
    assert model_state(given) == (state, reason)


def test_a_reason_shows_no_path_of_ours() -> None:
    assert "secret" not in last_line(TRACEBACK)
    assert last_line("") == ""


async def never_asked(model: str) -> ModelDescription:
    raise AssertionError(model)


async def nothing_loads() -> dict[str, str]:
    return {}


def catalog_of(*entries: ModelEntry, aliases: dict[str, dict[str, float]] | None = None) -> Catalog:
    catalog = Catalog(never_asked, nothing_loads)
    catalog.configure(RoutingConfig(models=tuple(entry.name for entry in entries), aliases=aliases or {}))
    catalog._entries = {entry.name: entry for entry in entries}
    return catalog


CHAT = ModelEntry("talk", "ready", None, ModelDescription(("chat",), "transformers", "generic", 10, False))
BOTH = ModelEntry("see", "ready", None, ModelDescription(("chat", "caption"), "transformers", "generic", 10, True))


def test_the_first_model_of_a_task_is_its_default() -> None:
    catalog = catalog_of(CHAT, BOTH)
    assert catalog.choose(None, "chat").name == "talk"
    assert catalog.choose(None, "caption").name == "see"
    assert catalog.choose("see", "chat").name == "see"


def test_images_go_to_the_first_model_that_takes_them() -> None:
    unknown = ModelEntry("new", "ready")
    assert catalog_of(CHAT, BOTH).choose(None, "chat", with_images=True).name == "see"
    assert catalog_of(CHAT, unknown, BOTH).choose(None, "chat", with_images=True).name == "new"
    assert catalog_of(CHAT).choose(None, "chat", with_images=True).name == "talk"  # whose refusal says why
    assert catalog_of(CHAT, BOTH).choose("talk", "chat", with_images=True).name == "talk"


def test_a_key_gets_the_first_of_its_own_models_that_takes_images() -> None:
    other = replace(BOTH, name="see-too")
    catalog, nothing = catalog_of(CHAT, BOTH, other), cast(Any, None)  # what choosing doesn't touch
    lane = Lane(HttpConfig(), catalog, *[nothing] * 9)
    key = Key("k", "0", models=frozenset({"talk", "see-too"}))
    assert lane.choose(None, "chat", key).name == "talk"
    assert lane.choose(None, "chat", key, with_images=True).name == "see-too"
    assert lane.choose("tgi", "chat", None, with_images=True).name == "see"


def test_what_cannot_be_chosen_says_why() -> None:
    catalog = catalog_of(CHAT, ModelEntry("new", "loading"), ModelEntry("bad", "failed", "no folder"))
    with pytest.raises(UnknownModel, match="did you mean 'talk'"):
        catalog.choose("tlak", "chat")
    with pytest.raises(UnsupportedTask, match="'talk' doesn't do caption"):
        catalog.choose("talk", "caption")
    with pytest.raises(ModelNotReady, match="'new' is loading") as loading:
        catalog.choose("new", "chat")
    assert loading.value.retry_after_s
    with pytest.raises(ModelNotReady, match="'bad' failed to start: no folder") as failed:
        catalog.choose("bad", "chat")
    assert failed.value.retry_after_s is None


def test_an_alias_gives_each_of_its_models_a_share() -> None:
    canary = replace(CHAT, name="talk-next")
    catalog = catalog_of(CHAT, canary, BOTH, aliases={"chat": {"talk": 3, "talk-next": 1, "see": 0}})
    drawn = Counter(catalog.choose("chat", "chat").name for _ in range(2000))
    assert set(drawn) == {"talk", "talk-next"}
    assert 0.15 < drawn["talk-next"] / 2000 < 0.35
    assert [entry.name for entry in catalog.entries()] == ["talk", "talk-next", "see", "chat"]
    assert catalog.find("chat").as_json(with_reason=True)["weights"] == {"talk": 3, "talk-next": 1, "see": 0}


def test_an_alias_leads_to_a_model_that_does_the_task() -> None:
    catalog = catalog_of(CHAT, BOTH, aliases={"any": {"talk": 99, "see": 1}})
    assert {catalog.choose("any", "caption").name for _ in range(50)} == {"see"}


def test_a_version_that_does_not_start_gets_no_requests() -> None:
    canary = ModelEntry("talk-next", "failed", "no folder")
    catalog = catalog_of(CHAT, canary, aliases={"chat": {"talk": 1, "talk-next": 99}})
    assert {catalog.choose("chat", "chat").name for _ in range(50)} == {"talk"}
    assert catalog.find("chat").is_ready
    alone = catalog_of(canary, aliases={"chat": {"talk-next": 1}})
    with pytest.raises(ModelNotReady, match="'talk-next' failed to start: no folder"):
        alone.choose("chat", "chat")
    assert not alone.find("chat").is_ready


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        ("serve_app.errors.ConfigError: model 'm': (OSError: no) fix it\n\nmore", "model 'm': (OSError: no) fix it"),
        ("Traceback:\n  File x\nray.exceptions.RuntimeEnvSetupError: no pip", "no pip"),
        (refusal(balancing="b"), "balancing: Input should be 'affinity' or 'power_of_two'"),
        (refusal(num_gpus=1.5), "num_gpus is 1.5: above one GPU it must be a whole number"),
        ("no class at all: just words", "no class at all: just words"),
    ],
)
def test_the_sentence_of_a_failure(message: str, sentence: str) -> None:
    assert last_line(message) == sentence


STARTS = overview(ApplicationStatus.DEPLOYING, DeploymentStatus.UPDATING)
FAILED_ONCE = overview(ApplicationStatus.DEPLOYING, DeploymentStatus.UPDATING, 0, f"A replica failed.\n{TRACEBACK}")


async def reasons_of(
    monkeypatch: pytest.MonkeyPatch, catalog: Catalog, **given: ApplicationStatusOverview | None
) -> Any:
    """The models' reasons after a look at applications like these; None is a model without one."""
    applications = {name: application for name, application in given.items() if application}
    monkeypatch.setattr(cluster, "overviews", lambda: applications)
    catalog.configure(RoutingConfig(models=tuple(given)))
    await catalog.refresh()
    return {entry.name: entry.reason for entry in catalog.entries()}


async def test_what_loads_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    num_asked = 0

    async def loading() -> dict[str, str]:
        nonlocal num_asked
        num_asked += 1
        return {"new": "downloading 1.2 of 4.9 GB", "gone": "loading weights", "bad": "warming up"}

    catalog = Catalog(never_asked, loading)
    assert await reasons_of(monkeypatch, catalog, new=STARTS, other=STARTS, bad=FAILED_ONCE) == {
        "new": "downloading 1.2 of 4.9 GB",
        "other": STARTING,
        "bad": "model 'm': source '/nowhere': there is no folder; correct the path",
    }
    assert num_asked == 1
    sleeping = overview(ApplicationStatus.RUNNING, DeploymentStatus.HEALTHY)
    assert await reasons_of(monkeypatch, catalog, new=sleeping) == {"new": None}
    assert num_asked == 1  # nothing loads, so nobody is asked


async def test_without_a_sidecar_there_is_no_detail(monkeypatch: pytest.MonkeyPatch) -> None:
    async def loading() -> dict[str, str]:
        raise RuntimeError("no such application")

    assert await reasons_of(monkeypatch, Catalog(never_asked, loading), new=STARTS) == {"new": STARTING}


WAITS = ApplicationStatusOverview(
    ApplicationStatus.DEPLOYING,
    "",
    1.0,
    {
        "Model": DeploymentStatusOverview(
            DeploymentStatus.UPDATING, DeploymentStatusTrigger.UNSPECIFIED, {ReplicaState.STARTING: 1}, ""
        )
    },
)
GROWS = ApplicationStatusOverview(
    ApplicationStatus.RUNNING,
    "",
    1.0,
    {
        "Model": DeploymentStatusOverview(
            DeploymentStatus.UPSCALING,
            DeploymentStatusTrigger.UNSPECIFIED,
            {ReplicaState.STARTING: 1, ReplicaState.RUNNING: 1},
            "",
        )
    },
)
NO_ROOM = "needs 4 GPU on one node: node 'a' has 1 of 1 GPU free: add a larger node"


async def describe(model: str) -> ModelDescription:
    return ModelDescription(("chat",), "scripted", "generic", None, False)


async def test_a_model_without_room_is_pending_with_the_clusters_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog(describe, nothing_loads, lambda: {"big": NO_ROOM, "more": NO_ROOM, "ours": NO_ROOM})
    reasons = await reasons_of(monkeypatch, catalog, big=WAITS, small=WAITS, more=GROWS)
    assert reasons == {
        "big": f"model 'big': {NO_ROOM}",
        "small": STARTING,
        "more": f"a further replica waits for room: it {NO_ROOM}",
    }
    assert [entry.state for entry in catalog.entries()] == ["pending", "loading", "ready"]
    with pytest.raises(ModelNotReady, match=r"model 'big' is pending: needs 4 GPU on one node"):
        catalog.choose("big", "chat")


async def test_a_cluster_that_does_not_tell_leaves_the_states(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent() -> dict[str, str]:
        raise RuntimeError("the head node is away")

    assert await reasons_of(monkeypatch, Catalog(describe, nothing_loads, silent), m=WAITS) == {"m": STARTING}


async def test_the_cluster_is_asked_only_while_a_replica_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = overview(ApplicationStatus.RUNNING, DeploymentStatus.HEALTHY, 1)
    asked: list[str] = []

    def ask() -> dict[str, str]:
        asked.append("cluster")
        return {}

    catalog = Catalog(describe, nothing_loads, ask)
    await reasons_of(monkeypatch, catalog, m=ready)
    assert asked == []
    await reasons_of(monkeypatch, catalog, m=WAITS)
    assert asked == ["cluster"]


async def test_models_are_asked_at_once_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, those that are silent would take as long as all of them together."""
    ready = overview(ApplicationStatus.RUNNING, DeploymentStatus.HEALTHY, 1)
    asked: set[str] = set()
    are_both_asked = asyncio.Event()

    async def describe_together(model: str) -> ModelDescription:
        asked.add(model)
        if len(asked) == 2:
            are_both_asked.set()
        await are_both_asked.wait()
        return await describe(model)

    catalog = Catalog(describe_together, nothing_loads)
    await reasons_of(monkeypatch, catalog, one=ready, two=ready)
    assert all(entry.description for entry in catalog.entries())


async def test_a_silent_model_is_waited_for_by_nobody_and_described_when_it_speaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ready = overview(ApplicationStatus.RUNNING, DeploymentStatus.HEALTHY, 1)
    may_speak = asyncio.Event()
    num_asked = 0

    async def describe_late(model: str) -> ModelDescription:
        nonlocal num_asked
        if model == "silent":
            num_asked += 1
            await may_speak.wait()
        return await describe(model)

    monkeypatch.setattr(descriptions, "PATIENCE_S", 0.01)
    catalog = Catalog(describe_late, nothing_loads, declarations=lambda: {"silent": Declaration(("caption",))})
    for _ in range(3):
        await reasons_of(monkeypatch, catalog, silent=ready, other=ready)
    assert num_asked == 1, "one question at a time"
    assert [entry.is_ready for entry in catalog.entries()] == [True, True]
    assert catalog.find("other").description
    with pytest.raises(UnsupportedTask):
        catalog.choose("silent", "chat")  # as its args say, until it speaks
    catalog._doubted.clear()
    may_speak.set()
    await asyncio.wait_for(catalog._doubted.wait(), 20)
    await catalog.refresh()
    assert catalog.choose("silent", "chat").description


async def test_a_new_ingress_starts_without_those_who_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()
    monkeypatch.setattr("serve_app.models.catalog.FIRST_LOOK_S", 0.05)
    monkeypatch.setattr(cluster, "overviews", lambda: is_over.wait(60))
    catalog = catalog_of(replace(CHAT, state="pending"))
    try:
        async with asyncio.timeout(10):
            await catalog.first_look()
    finally:
        is_over.set()  # else the thread that asks would hold up the end


async def test_a_new_ingress_serves_with_the_states_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why others wait for room is a detail: its silence keeps no model that is ready from requests."""
    is_over = threading.Event()
    ready = overview(ApplicationStatus.RUNNING, DeploymentStatus.HEALTHY, 1)
    starts = overview(ApplicationStatus.DEPLOYING, DeploymentStatus.UPDATING)
    starts.deployments["Model"].replica_states[ReplicaState.STARTING] = 1
    monkeypatch.setattr("serve_app.models.catalog.FIRST_LOOK_S", 1.0)

    def silent() -> dict[str, str]:
        is_over.wait(60)
        return {}

    monkeypatch.setattr(cluster, "overviews", lambda: {"talk": ready, "late": starts})
    catalog = Catalog(describe, nothing_loads, silent)
    catalog.configure(RoutingConfig(models=("talk", "late")))
    try:
        await catalog.first_look()
        assert catalog.choose("talk", "chat").is_ready
        monkeypatch.setattr(cluster, "overviews", lambda: {"talk": ready, "late": starts, "third": ready})
        catalog.configure(RoutingConfig(models=("talk", "late", "third")))
        await catalog.first_look()
        assert catalog.choose("third", "chat").is_ready
        monkeypatch.setattr(cluster, "overviews", lambda: {"talk": ready, "late": ready, "third": starts})
        await catalog.first_look()
        assert catalog.choose("late", "chat").is_ready
    finally:
        is_over.set()


async def test_an_adapter_never_goes_while_its_base_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = overview(ApplicationStatus.RUNNING, DeploymentStatus.HEALTHY, 1)
    catalog: Catalog
    seen: list[bool] = []

    async def describe_base(model: str) -> ModelDescription:
        if catalog.find("talk").description:
            seen.append(catalog.find("tuned").is_ready)
        return ModelDescription(("chat",), "scripted", "generic", None, False, adapters=("tuned",))

    catalog = Catalog(describe_base, nothing_loads)
    for deployed_at in (1.0, 2.0):
        again = replace(ready, last_deployed_time_s=deployed_at)
        await reasons_of(monkeypatch, catalog, talk=again, tuned=None)
    assert seen == [True]


KEPT = {"Model": DeploymentStatusOverview(
    DeploymentStatus.HEALTHY, DeploymentStatusTrigger.UNSPECIFIED, {ReplicaState.RUNNING: 2}, ""
)}  # fmt: skip


@pytest.mark.parametrize("status", [ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.DEPLOYING])
async def test_a_model_serves_as_long_as_it_has_replicas_also_for_a_new_ingress(
    monkeypatch: pytest.MonkeyPatch, status: ApplicationStatus
) -> None:
    refused = ApplicationStatusOverview(status, refusal(dtype="float99"), 1.0, KEPT)
    catalog = Catalog(describe, nothing_loads)
    await reasons_of(monkeypatch, catalog, talk=refused)
    assert catalog.choose("talk", "chat").num_replicas == 2
    reason = catalog.find("talk").reason or ""
    assert ("the one before serves: dtype: Input should be" in reason) == (status == ApplicationStatus.DEPLOY_FAILED)
    await reasons_of(monkeypatch, catalog, talk=STARTS)  # its replicas are replaced
    assert catalog.choose("talk", "chat")


async def test_a_controller_that_knows_no_application_leaves_the_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ingress's own is always one: a controller that is coming up tells of none."""
    ready = overview(ApplicationStatus.RUNNING, DeploymentStatus.HEALTHY, 1)
    catalog = Catalog(describe, nothing_loads)
    await reasons_of(monkeypatch, catalog, talk=ready)
    await reasons_of(monkeypatch, catalog, talk=None)
    assert catalog.choose("talk", "chat").is_ready
    monkeypatch.setattr(cluster, "overviews", lambda: {"ingress": ready})
    await catalog.refresh()
    with pytest.raises(ModelNotReady, match="'talk' is pending: no Serve application"):
        catalog.choose("talk", "chat")


async def test_whoever_watches_hears_of_a_model_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog(describe, nothing_loads)
    told: list[str | None] = []

    def look() -> None:
        refusal = catalog.refusal_of("talk")
        told.append(refusal.message if refusal else None)

    catalog.watch(look)
    ready = overview(ApplicationStatus.RUNNING, DeploymentStatus.HEALTHY, 1)
    failed = overview(ApplicationStatus.DEPLOY_FAILED, DeploymentStatus.DEPLOY_FAILED, 0, TRACEBACK)
    capacities = []
    for given in (ready, FAILED_ONCE, failed):
        await reasons_of(monkeypatch, catalog, talk=given)
        capacities.append(catalog.capacity("talk"))
    assert told == [
        None,
        None,
        "model 'talk' failed to start: model 'm': source '/nowhere': there is no folder; correct the path",
    ]
    assert capacities[2] > 1000 > capacities[1], "whoever waits for its turn is let through, to be told"


ASLEEP = overview(ApplicationStatus.RUNNING, DeploymentStatus.HEALTHY)


async def test_what_a_sleeping_model_can_do_is_known_from_its_args(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nobody could wake it by its adapter's name, and it might be woken for a task that it doesn't do."""
    told = {"talk": Declaration(("chat",), ("tuned",)), "see": Declaration(family="joycaption")}
    catalog = Catalog(describe, nothing_loads, declarations=lambda: told)
    await reasons_of(monkeypatch, catalog, talk=ASLEEP, tuned=None, see=ASLEEP)
    tuned = catalog.find("tuned")
    assert (tuned.state, tuned.base, catalog.application_of("tuned")) == ("scaled_to_zero", "talk", "talk")
    assert catalog.choose("tuned", "chat").name == "tuned"
    assert catalog.choose(None, "caption").name == "see"
    assert (catalog.find("see").family, catalog.find("talk").family) == ("joycaption", None)
    with pytest.raises(UnsupportedTask):
        catalog.choose("tuned", "caption")


async def test_args_are_read_again_only_after_a_deploy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask() -> dict[str, Declaration]:
        asked.append("Ray Serve")
        if len(asked) == 1:
            raise RuntimeError("the controller is away")
        return {}

    catalog = Catalog(describe, nothing_loads, declarations=ask)
    for _ in range(4):
        await reasons_of(monkeypatch, catalog, talk=ASLEEP)
    assert len(asked) == 2, "once more after the failure"
    await reasons_of(monkeypatch, catalog, talk=replace(ASLEEP, last_deployed_time_s=2.0))
    assert len(asked) == 3


def test_a_refusal_names_the_model_once() -> None:
    catalog = catalog_of(ModelEntry("bad", "failed", "model 'bad': source '/x': there is no folder"))
    with pytest.raises(ModelNotReady) as raised:
        catalog.choose("bad", "chat")
    assert raised.value.message == "model 'bad' failed to start: source '/x': there is no folder"


async def test_states_are_asked_for_less_while_all_rests_and_at_once_when_in_doubt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[None] = []

    async def count(self: Catalog) -> None:
        asked.append(None)

    monkeypatch.setattr("serve_app.models.catalog.REST_AFTER_S", 0.0)
    monkeypatch.setattr("serve_app.models.catalog.LEAST_PERIOD_S", 0.0)
    monkeypatch.setattr("serve_app.models.catalog.RESTING_PERIOD_S", 1000.0)
    monkeypatch.setattr(Catalog, "try_refresh", count)
    catalog = catalog_of(CHAT)
    catalog._doubted.clear()
    keeping = asyncio.create_task(catalog.keep_fresh())
    await asyncio.sleep(0.05)
    assert not asked, "all is ready, and the resting period is long"
    for number in (1, 2):
        catalog.doubt()
        await asyncio.sleep(0.05)
        assert len(asked) == number
    keeping.cancel()


async def test_states_are_asked_for_often_while_a_model_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[None] = []
    often = asyncio.Event()

    async def count(self: Catalog) -> None:
        asked.append(None)
        if len(asked) == 5:
            often.set()

    monkeypatch.setattr("serve_app.models.catalog.REFRESH_PERIOD_S", 0.01)
    monkeypatch.setattr("serve_app.models.catalog.RESTING_PERIOD_S", 1000.0)
    monkeypatch.setattr(Catalog, "try_refresh", count)
    catalog = catalog_of(replace(CHAT, state="loading"))
    keeping = asyncio.create_task(catalog.keep_fresh())
    await asyncio.wait_for(often.wait(), 20)
    keeping.cancel()

"""`/ready`: when it is 200, and what it tells to whom. Over the ingress's own catalog, without Ray."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatus

from serve_app.access.budget import Budget
from serve_app.access.keys import Keyring
from serve_app.access.running import Running
from serve_app.config.applications import RoutingConfig
from serve_app.config.http import HttpConfig, KeysConfig
from serve_app.exchange.lane import Lane
from serve_app.ingress.app import create_app
from serve_app.metrics.registry import Metrics
from serve_app.models.catalog import Catalog
from serve_app.placement import cluster
from tests.models.test_catalog import ASLEEP, FAILED_ONCE, STARTS, TRACEBACK, describe, nothing_loads, overview

SERVES = overview(ApplicationStatus.RUNNING, DeploymentStatus.HEALTHY, 1)
FAILED = overview(ApplicationStatus.DEPLOY_FAILED, DeploymentStatus.DEPLOY_FAILED, 0, TRACEBACK)
DIED = overview(ApplicationStatus.UNHEALTHY, DeploymentStatus.UNHEALTHY, 0, "The actor died on node 10.1.2.3.")
KEPT = overview(ApplicationStatus.DEPLOY_FAILED, DeploymentStatus.DEPLOY_FAILED, 1, TRACEBACK)
Given = dict[str, ApplicationStatusOverview | None]


class Ingress:
    """An ingress's HTTP app, and the states that it sees."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, keys: KeysConfig) -> None:
        self._monkeypatch = monkeypatch
        self.catalog = Catalog(describe, nothing_loads)
        self.running = Running()
        nothing = cast(Any, None)  # what these routes don't touch
        lane = Lane(
            config=HttpConfig(),
            catalog=self.catalog,
            handle=nothing,
            images=nothing,
            metrics=Metrics(CollectorRegistry()),
            keys=Keyring(keys),
            budget=Budget(),
            admission=nothing,
            running=self.running,
            cancel_elsewhere=nothing,
            heed_others=nothing,
        )
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(create_app(lane)), base_url="http://ingress")

    async def sees(self, **given: ApplicationStatusOverview | None) -> None:
        applications = {name: application for name, application in given.items() if application}
        self._monkeypatch.setattr(cluster, "overviews", lambda: applications)
        self.catalog.configure(RoutingConfig(models=tuple(given)))
        await self.catalog.refresh()

    async def statuses(self) -> tuple[int, int]:
        """Of `/ready` and of `/ready?all=1`."""
        answers = [await self.client.get(path) for path in ("/ready", "/ready?all=1")]
        for answer in answers:
            assert answer.json()["ready"] == (answer.status_code == 200)
        return answers[0].status_code, answers[1].status_code


@pytest.fixture
async def ingress(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ingress]:
    """Without keys."""
    monkeypatch.delenv("SERVE_APP_API_KEYS", raising=False)
    made = Ingress(monkeypatch, KeysConfig())
    async with made.client:
        yield made


@pytest.fixture
async def locked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Ingress]:
    """With keys: `sa-admin` and `sa-user`."""
    entries = [
        {"name": name, "sha256": hashlib.sha256(f"sa-{name}".encode()).hexdigest(), "admin": name == "admin"}
        for name in ("admin", "user")
    ]
    path = tmp_path / "keys.yaml"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump({"keys": entries}))
    made = Ingress(monkeypatch, KeysConfig(file=str(path)))
    async with made.client:
        yield made


@pytest.mark.parametrize("new", [STARTS, FAILED, FAILED_ONCE, None])
async def test_a_new_model_that_is_not_ready_takes_nothing_out(
    ingress: Ingress, new: ApplicationStatusOverview | None
) -> None:
    await ingress.sees(old=SERVES)
    assert await ingress.statuses() == (200, 200)
    await ingress.sees(old=SERVES, new=new)
    assert await ingress.statuses() == (200, 503)
    told = (await ingress.client.get("/ready")).json()["models"]
    assert told["old"] == {"state": "ready"}
    assert told["new"]["state"] in ("loading", "failed", "pending")
    assert told["new"]["reason"]


@pytest.mark.parametrize(
    ("given", "statuses"),
    [
        ({"a": None}, (503, 503)),
        ({"a": STARTS, "b": FAILED}, (503, 503)),
        ({"a": ASLEEP, "b": None}, (200, 503)),
        ({"a": KEPT}, (200, 200)),
        ({"a": SERVES, "b": DIED}, (200, 503)),  # requests for it are held, and Ray Serve starts it again
    ],
)
async def test_an_ingress_that_starts_anew(ingress: Ingress, given: Given, statuses: tuple[int, int]) -> None:
    """It knows no more than Ray Serve tells: one model that is down doesn't keep it from serving the others."""
    await ingress.sees(**given)
    assert await ingress.statuses() == statuses


async def test_what_could_serve_once_must_serve_on(ingress: Ingress) -> None:
    await ingress.sees(a=SERVES, b=SERVES)
    await ingress.sees(a=SERVES, b=STARTS)
    assert await ingress.statuses() == (200, 503), "it is being replaced, and its requests are held"
    await ingress.sees(a=SERVES, b=FAILED)
    assert await ingress.statuses() == (503, 503)
    await ingress.sees(a=SERVES, b=KEPT)
    assert await ingress.statuses() == (200, 200)
    await ingress.sees(a=SERVES, b=FAILED)
    await ingress.sees(a=SERVES)
    assert await ingress.statuses() == (200, 200), "it was taken out"
    ingress.running.close()
    assert await ingress.statuses() == (503, 503)


async def test_ready_is_asked_for_all_or_not(ingress: Ingress) -> None:
    await ingress.sees(a=SERVES, b=None)
    assert (await ingress.client.get("/ready?all=0")).status_code == 200
    refused = await ingress.client.get("/ready?all=maybe")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "all")


@pytest.mark.parametrize("given", ["", "Bearer sa-user", "Bearer sa-nobody", "Basic abc", "Bearer " + "x" * 5000])
async def test_a_stranger_hears_ready_alone(locked: Ingress, given: str) -> None:
    await locked.sees(a=SERVES, b=FAILED)
    headers = {"authorization": given} if given else {}
    assert (await locked.client.get("/ready", headers=headers)).json() == {"ready": True}
    assert (await locked.client.get("/ready?all=1", headers=headers)).json() == {"ready": False}


async def test_only_administrators_hear_why(locked: Ingress) -> None:
    """A reason may name folders, hub ids and nodes."""
    await locked.sees(a=SERVES, b=FAILED)
    locked.catalog.refused_config = "aliases: 'x' leads to 'y'"
    admin, user = ({"authorization": f"Bearer sa-{name}"} for name in ("admin", "user"))
    told = (await locked.client.get("/ready", headers=admin)).json()
    assert "/nowhere" in told["models"]["b"]["reason"]
    assert told["refused_config"] == "aliases: 'x' leads to 'y'"
    for path in ("/v1/models", "/v1/models/b"):
        assert "/nowhere" in (await locked.client.get(path, headers=admin)).text
        other = await locked.client.get(path, headers=user)
        assert '"failed"' in other.text
        assert "/nowhere" not in other.text
        assert "leads to" not in other.text


async def test_nobody_else_hears_why_a_request_is_refused(locked: Ingress) -> None:
    await locked.sees(a=SERVES, b=FAILED)
    admin, user = ({"authorization": f"Bearer sa-{name}"} for name in ("admin", "user"))
    body = {"model": "b", "messages": [{"role": "user", "content": "hello"}]}
    told, less = [
        (await locked.client.post("/v1/chat/completions", json=body, headers=headers)).json()["error"]["message"]
        for headers in (admin, user)
    ]
    assert told == "model 'b' failed to start: model 'm': source '/nowhere': there is no folder; correct the path"
    assert less == "model 'b' failed to start: tell whoever runs this service"

"""A model that failed: its requests are counted as its own, and the alert for it fires on what is really scraped."""

import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from ray.serve._private.common import ReplicaState
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
)

from serve_app.access.keys import Keyring
from serve_app.config.applications import MetricsConfig, RoutingConfig
from serve_app.config.http import KeysConfig
from serve_app.ingress.app import create_app
from serve_app.messages import ModelDescription
from serve_app.metrics.app import create_metrics_app
from serve_app.metrics.registry import Metrics
from serve_app.metrics.sidecar import Sidecar
from serve_app.metrics.snapshot import Snapshot, Source
from serve_app.models.catalog import Catalog
from serve_app.placement import cluster
from tests.bare_lane import bare_lane

ALERTS = Path(__file__).parent.parent.parent / "cluster" / "prometheus" / "alerts.yaml"
CAPTION, CHAT = "/v1/captions", "/v1/chat/completions"
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}
ASKED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "chat": (CHAT, HI | {"model": "gone"}, "gone", "model_not_ready"),
    "streamed chat": (CHAT, HI | {"model": "gone", "stream": True}, "gone", "model_not_ready"),
    "completion": ("/v1/completions", {"model": "gone", "prompt": "hi"}, "gone", "model_not_ready"),
    "caption": (CAPTION, {"model": "gone", "image": "aGk="}, "gone", "model_not_ready"),
    "TGI's": ("/generate?model=gone", {"inputs": "hi"}, "gone", "model_not_ready"),
    "the default": (CHAT, HI, "gone", "model_not_ready"),
    "by its alias": (CHAT, HI | {"model": "vlm"}, "gone", "model_not_ready"),
    "what another can't do": (CAPTION, {"model": "reads", "image": "aGk="}, "reads", "unsupported_task"),
    "a name of the client's own": (CHAT, HI | {"model": "made-up"}, "none", "model_not_found"),
    "a hostile name": (CHAT, HI | {"model": 'x"} 1\\n' * 9}, "none", "model_not_found"),
    "no JSON": (CHAT, {"model": 7}, "none", "invalid_request"),
}


def overview(status: ApplicationStatus, running: int, message: str = "") -> ApplicationStatusOverview:
    state = DeploymentStatus.HEALTHY if running else DeploymentStatus.DEPLOY_FAILED
    states = {ReplicaState.RUNNING: running} if running else {}
    told = DeploymentStatusOverview(state, DeploymentStatusTrigger.UNSPECIFIED, states, message)
    return ApplicationStatusOverview(status, message, 1.0, {"Model": told})


STATES = {
    "gone": overview(ApplicationStatus.DEPLOY_FAILED, 0, "there is no folder"),
    "reads": overview(ApplicationStatus.RUNNING, 1),
}


async def _describe(model: str) -> ModelDescription:
    return ModelDescription(("chat",), "scripted", "generic", 1000, False)


async def _no_steps() -> dict[str, str]:
    return {}


@pytest.fixture
async def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
async def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry, STATES)


@pytest.fixture
async def client(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """An ingress's HTTP app over its own catalog, to which Ray Serve says that one model failed."""
    monkeypatch.setattr(cluster, "overviews", lambda: STATES)
    catalog = Catalog(_describe, _no_steps)
    catalog.configure(RoutingConfig(models=["gone", "reads"], aliases={"vlm": {"gone": 1}}))
    await catalog.refresh()
    app = create_app(bare_lane(metrics, catalog))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://it") as client:
        yield client


def counted(text: str) -> dict[tuple[str, str], float]:
    """Requests by model and outcome, as a scrape has them."""
    found = re.findall(r"^serve_app_requests_total\{(.*)\} (\S+)$", text, re.MULTILINE)
    rows = [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for labels, value in found]
    return {(labels["model"], labels["outcome"]): value for labels, value in rows}


@pytest.mark.parametrize(("path", "body", "model", "outcome"), ASKED.values(), ids=ASKED)
async def test_the_known_name_is_the_label(
    client: httpx.AsyncClient,
    registry: CollectorRegistry,
    path: str,
    body: Mapping[str, Any],
    model: str,
    outcome: str,
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code >= 400
    assert counted(generate_latest(registry).decode()) == {(model, outcome): 1}


async def test_its_alert_fires_on_what_is_really_scraped(
    client: httpx.AsyncClient, metrics: Metrics, tmp_path: Path
) -> None:
    """Three requests a minute for the failed model, and as many for a name that nobody knows."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool isn't installed (Debian: apt-get install prometheus)")
    for name in ("gone", "made-up"):
        for _ in range(3):
            await client.post(CHAT, json=HI | {"model": name})
    sidecar = Sidecar(MetricsConfig())
    sidecar.record(Snapshot(Source("ingress", "ingress", "a", "host:1", 0.0), 1, 0.0, metrics.read()))
    app = create_metrics_app(sidecar, Keyring(KeysConfig()))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://it") as scraper:
        scraped = (await scraper.get("/")).text
    series = re.findall(r"^(serve_app_requests_total\{.*\}) 3.0$", scraped, re.MULTILINE)
    assert len(series) == 2
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    summary = next(rule for rule in rules if rule["alert"] == "ServeAppModelNotReady")["annotations"]["summary"]
    fired = {
        "exp_labels": {"severity": "critical", "model": "gone"},
        "exp_annotations": {"summary": summary.replace("{{ $labels.model }}", "gone")},
    }
    case = {
        "interval": "1m",
        "input_series": [{"series": one, "values": "0+3x30"} for one in series],
        "alert_rule_test": [{"alertname": "ServeAppModelNotReady", "eval_time": "20m", "exp_alerts": [fired]}],
    }
    shutil.copy(ALERTS, tmp_path)
    told = {"rule_files": [ALERTS.name], "evaluation_interval": "1m", "tests": [case]}
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(told))
    _run(promtool, tmp_path)


def _run(promtool: str, folder: Path) -> None:
    done = subprocess.run([promtool, "test", "rules", "test.yaml"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

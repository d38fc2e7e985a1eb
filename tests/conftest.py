"""Fixtures that several test files share. The one Ray cluster is started once and serves every test that needs it."""

import os
from collections.abc import Generator, Iterator
from typing import Any

import httpx
import pytest

from tests.service import RunningService, serving

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may reach a hub

CONFIG: dict[str, Any] = {
    "proxy_location": "HeadOnly",
    "applications": [
        {
            "name": "demo",
            "import_path": "serve_app.app:build_model",
            "route_prefix": None,
            "args": {"source": "demo", "num_cpus": 0.3},
        },
        {
            "name": "script",
            "import_path": "serve_app.app:build_model",
            "route_prefix": None,
            "args": {
                "source": "none",
                "engine": "scripted",
                "num_cpus": 0.1,
                "tasks": ["chat"],
                "engine_args": {"takes_pictures": False, "tokens_per_s": 200},
            },
        },
        {
            "name": "ingress",
            "import_path": "serve_app.app:build_ingress",
            "route_prefix": "/",
            "args": {"num_cpus": 0.2, "images": {"allowed_networks": ["127.0.0.0/8"]}},
            "deployments": [{"name": "Ingress", "user_config": {"models": ["demo", "script"]}}],
        },
        {
            "name": "metrics",
            "import_path": "serve_app.app:build_metrics",
            "route_prefix": "/metrics",
            "args": {},
        },
    ],
}


@pytest.fixture(scope="session")
def service() -> Iterator[RunningService]:
    with serving(CONFIG) as running:
        yield running


@pytest.fixture
def client(service: RunningService) -> Iterator[httpx.Client]:
    with service.client as client:
        yield client


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under REQUIRE_ALL=1, as in CI, a test that skips for want of a tool has failed."""
    report = yield
    if report.skipped and os.environ.get("REQUIRE_ALL") == "1":
        report.outcome = "failed"
    return report

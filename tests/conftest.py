"""Fixtures that several test files share. The one Ray cluster is started once and serves every test that needs it."""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests import schedule
from tests.cli_fake import NUM_IMAGES, FakeApi
from tests.cli_fake import serving as serving_fake
from tests.service import RunningService, serving

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may reach a hub

CONFIG: dict[str, Any] = {
    "proxy_location": "HeadOnly",
    "applications": [
        {
            "name": "demo",
            "import_path": "serve_app.app:build_model",
            "route_prefix": "/models/demo",
            "args": {
                "source": "demo",
                "engine": "transformers",
                "num_cpus": 0.3,
                "http": {"images": {"allowed_networks": ["127.0.0.0/8"]}},
            },
        },
        {
            "name": "script",
            "import_path": "serve_app.app:build_model",
            "route_prefix": "/models/script",
            "args": {
                "source": "none",
                "engine": "scripted",
                "num_cpus": 0.1,
                "tasks": ["chat"],
                "engine_args": {"takes_images": False, "tokens_per_s": 200},
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
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny random models; `demo` is the one that ships with the package."""
    from serve_app.demo import CHECKPOINT
    from tests import tiny_models

    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "llama": tiny_models.build_llama(root / "llama"),
        "plain": tiny_models.build_llama(root / "plain", chat_template=None),
        "idefics3": tiny_models.build_idefics3(root / "idefics3"),
        "llava": tiny_models.build_llava(root / "llava"),
        "demo": CHECKPOINT,
    }


@pytest.fixture(scope="session")
def demo_lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the demo model's own lane, in this process, on transformers; it fetches from loopback."""
    from serve_app.config.applications import ModelConfig
    from tests.own_lane import own_lane

    model = ModelConfig(source="demo", engine="transformers")
    images = {"allowed_networks": ["127.0.0.0/8"]}
    with own_lane(tmp_path_factory.mktemp("demo-lane"), model, images=images) as url:
        yield str(url)


@pytest.fixture(scope="session")
def service() -> Iterator[RunningService]:
    with serving(CONFIG) as running:
        yield running


@pytest.fixture
def client(service: RunningService) -> Iterator[httpx.Client]:
    with service.client as client:
        yield client


@pytest.fixture
def openai_client(service: RunningService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{service.url}/v1", api_key="none", max_retries=0, http_client=httpx.Client(trust_env=False)
    ) as client:
        yield client


@pytest.fixture
def api() -> FakeApi:
    """The command line's fake service, without a model, for what a real one can't be made to do."""
    return FakeApi()


@pytest.fixture
def url(api: FakeApi) -> Iterator[str]:
    with serving_fake(api) as url:
        yield url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images with a number as their content, which the fake service tells in its caption."""
    (tmp_path / "in").mkdir()
    for index in range(NUM_IMAGES):
        (tmp_path / f"in/{index:03}.jpg").write_text(f"p{index}")
    return tmp_path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes
        schedule.sort(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> schedule.GroupScheduling:
    return schedule.GroupScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Under REQUIRE_ALL=1, as in CI, a test that skips for want of a tool has failed.

    Not one for the second environment, which has a make target of its own.
    """
    report = yield
    is_elsewhere = item.get_closest_marker("second_environment") is not None
    if report.skipped and not is_elsewhere and os.environ.get("REQUIRE_ALL") == "1":
        report.outcome = "failed"
    return report

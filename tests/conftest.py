"""Fixtures that several test files share, and the order and grouping of the tests.

The shared Ray cluster is started once and serves every test that needs it. The Makefile runs pytest with several
processes; all tests of a group run in one of them, one after the other, so that they share a cluster there too.
"""

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

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


# The groups that take longest; they start first, so that the short ones fill both processes to the end.
LONGEST_GROUPS = ("vllm", "service", "haproxy")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Among several processes, give each test its group and put the groups that take longest first."""
    if not hasattr(config, "workerinput"):
        return
    ranks: dict[str, int] = {}
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
        ranks[group] = min(ranks.get(group, len(LONGEST_GROUPS) + 3), _rank(item, group))
    items.sort(key=lambda item: ranks[groups[item]])


def _group(item: pytest.Item) -> str:
    """What its mark `xdist_group` says, "service" for a test of the shared cluster, otherwise its file."""
    if mark := item.get_closest_marker("xdist_group"):
        return str(mark.args[0])
    if isinstance(item, pytest.Function) and "service" in item.fixturenames and not hasattr(item.module, "service"):
        return "service"
    return item.nodeid.partition("::")[0]


def _rank(item: pytest.Item, group: str) -> int:
    if group in LONGEST_GROUPS:
        return LONGEST_GROUPS.index(group)
    markers = ("slow", "cluster", "engine")
    return len(LONGEST_GROUPS) + next((i for i, name in enumerate(markers) if item.get_closest_marker(name)), 3)


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

"""Clients of two lanes: over the scripted engine, and over the demo model."""

from collections.abc import Iterator

import httpx
import pytest

from tests.own_lane import bearer, lane_client


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with lane_client(tmp_path_factory.mktemp("lane")) as client:
        yield client


@pytest.fixture(scope="module")
def demo(demo_lane: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=demo_lane, trust_env=False, timeout=60, headers=bearer("all")) as client:
        yield client

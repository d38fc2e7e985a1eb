"""A model's files on every node that holds a rank, each simulated node with a cache of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.demo import CHECKPOINT
from tests.ray_nodes import RayNodes, ray_nodes

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

# As a replica does it: in a task of a placement group, a bundle of which lies on another node.
FETCH = """
import json, sys
from pathlib import Path
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from serve_app.config.applications import ModelConfig
from serve_app.checkpoints import source
from serve_app.engines.vllm import nodes as vllm_nodes
from serve_app.errors import ConfigError

@ray.remote(num_cpus=0.1)
def fetch(given):
    config, told = ModelConfig(source=given), []
    try:
        vllm_nodes.fetch_on_other_nodes(config, [source.resolve(config, told.append)], told.append)
    except ConfigError as exc:
        return {"refused": str(exc)}
    return {"told": told}

ray.init(address=sys.argv[1], log_to_driver=False)
group = placement_group([{"CPU": 0.1}] * 2, strategy="STRICT_SPREAD")
place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
place.placement_group_capture_child_tasks = True
found = [ray.get(fetch.options(scheduling_strategy=place).remote(given), timeout=120) for given in sys.argv[2:]]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [tmp_path_factory.mktemp("left"), tmp_path_factory.mktemp("right")]


@pytest.fixture(scope="module")
def nodes(caches: list[Path]) -> Iterator[RayNodes]:
    with ray_nodes([{"num_cpus": 1, "env_vars": {"SERVE_APP_CACHE": str(cache)}} for cache in caches]) as nodes:
        yield nodes


def fetched(nodes: RayNodes, *sources: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", FETCH, nodes.address, *sources],
        capture_output=True, text=True, timeout=500, env=nodes.environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_each_node_fetches_the_files_and_all_have_them_in_one_place(nodes: RayNodes, caches: list[Path]) -> None:
    in_one_place, apart = fetched(nodes, "demo", f"file://{CHECKPOINT}")
    assert in_one_place == {"told": ["fetching it on 1 more nodes"]}
    for cache in caches:
        assert [file.name for file in cache.rglob("model.safetensors")] == ["model.safetensors"]
        assert str(cache) in apart["refused"]
    assert "set HF_HOME and SERVE_APP_CACHE alike" in apart["refused"]

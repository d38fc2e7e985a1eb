"""Prepares Ray for a model whose ranks are on several nodes: its files on each node, and vLLM's engine core in the
replica's own cluster. Imports no vLLM.
"""

import os
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup, get_current_placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from serve_app.checkpoints import source
from serve_app.checkpoints.load_progress import Report, to_nobody
from serve_app.config import environment
from serve_app.config.applications import ModelConfig
from serve_app.errors import ConfigError

_EXTRA_VARIABLES = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"  # names of variables that vLLM copies to ranks on other nodes


def point_to_ray(config: ModelConfig) -> None:
    """Set the variables that vLLM's processes read.

    Without an address, the engine core would join the newest cluster on its host or start its own. The ranks get the
    replica's variables of `env_from`.
    """
    if ray.is_initialized():
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    if config.env_from:
        os.environ[_EXTRA_VARIABLES] = ",".join(filter(None, [os.environ.get(_EXTRA_VARIABLES), *config.env_from]))


def fetch_on_other_nodes(config: ModelConfig, here: list[Path], report: Report) -> None:
    """Fetch the model's files on every other node of the replica's placement group.

    `here`: their folders on this node. A rank loads its weights from its own node's disk, by the same path. Blocks;
    raises `ConfigError`.
    """
    group = get_current_placement_group() if ray.is_initialized() else None
    others = _bundles_elsewhere(group) if group else {}
    if others:
        report(f"fetching it on {len(others)} more nodes")
    tasks = {node: _fetch_beside(group, bundle, config) for node, bundle in others.items()}
    for node, task in tasks.items():
        there = _folders_of(task, node)
        if there != [str(folder) for folder in here]:
            raise ConfigError(
                f"source '{config.source}' lies in {', '.join(map(str, here))} on one node and in {', '.join(there)} "
                f"on node {node}: set HF_HOME and SERVE_APP_CACHE alike on both"
            )


def _bundles_elsewhere(group: PlacementGroup) -> dict[str, int]:
    """One bundle index for each node except this one."""
    nodes: dict[int, str] = placement_group_table(group)["bundles_to_node_id"]
    own = ray.get_runtime_context().get_node_id()
    return {node: int(bundle) for bundle, node in nodes.items() if node != own}


def _fetch_beside(group: PlacementGroup, bundle: int, config: ModelConfig) -> Any:
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)
    return ray.remote(_fetch).options(num_cpus=0, scheduling_strategy=place).remote(config)


def _fetch(config: ModelConfig) -> list[str]:
    with environment.taken(config.env_from):  # Ray reuses this process for other work
        adapters = [source.resolve_adapter(adapter, to_nobody) for adapter in config.adapters.values()]
        return [str(folder) for folder in (source.resolve(config, to_nobody), *adapters)]


def _folders_of(task: Any, node: str) -> list[str]:
    try:
        folders: list[str] = ray.get(task)
    except RayTaskError as exc:
        raise ConfigError(f"on node {node}, where a rank stands: {exc.cause}") from exc
    return folders

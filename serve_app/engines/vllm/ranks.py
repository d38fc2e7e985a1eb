"""Checks that a model can run on several ranks: its `engine_args` leave their number and place to the config, and
its attention heads divide evenly among them.

Each rank is a worker of vLLM's Ray executor in a GPU bundle of the replica's placement group, which vLLM finds by
itself. Imports no vLLM and no Ray.
"""

import json
from pathlib import Path
from typing import Any

from serve_app.checkpoints.source import local_folder
from serve_app.config.applications import ModelConfig
from serve_app.errors import ConfigError

# vLLM's arguments that would put ranks where the placement group has no bundle for them, and what to set instead.
_PLACED_ELSEWHERE = {
    "distributed_executor_backend": "several ranks run on Ray, in the replica's placement group",
    "data_parallel_size": "raise autoscaling.max_replicas instead",
    "prefill_context_parallel_size": "raise tensor_parallel_size instead",
    "nnodes": "set placement_strategy instead",
}
_LANGUAGE_PARTS = ("text_config", "llm_config", "language_config")
_NUM_HEADS = ("num_attention_heads", "n_head", "num_heads")


def check_ranks(config: ModelConfig) -> None:
    """Check what needs no GPU and no download. Raises `ConfigError` with the fix."""
    if config.num_ranks == 1:
        return
    for key, fix in _PLACED_ELSEWHERE.items():
        if key in config.engine_args:
            raise ConfigError(f"engine_args: leave out '{key}' where a model has several ranks: {fix}")
    folder = local_folder(config.source)
    if folder is not None:
        check_heads(config, folder)


def check_heads(config: ModelConfig, folder: Path) -> None:
    """Raise `ConfigError` where the checkpoint's attention heads can't be split evenly over the ranks."""
    heads = _num_heads(folder / "config.json")
    if heads is not None and heads % config.tensor_parallel_size:
        divisors = [str(number) for number in range(1, heads + 1) if heads % number == 0]
        raise ConfigError(
            f"source '{config.source}' has {heads} attention heads, which {config.tensor_parallel_size} ranks can't "
            f"share evenly: set tensor_parallel_size to one of {', '.join(divisors)}"
        )


def _num_heads(file: Path) -> int | None:
    """The language model's; None where the file doesn't say, which leaves it to the engine's own checks."""
    try:
        values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return None
    part = next((values[name] for name in _LANGUAGE_PARTS if isinstance(values.get(name), dict)), values)
    num_heads = next((part[name] for name in _NUM_HEADS if name in part), None)
    return num_heads if isinstance(num_heads, int) and num_heads > 0 else None

"""A fraction of a GPU as a setting that reaches each engine; no GPU is needed for that."""

import pytest
import torch

from serve_app.config.applications import VLLM_MEMORY_SHARE, ModelConfig
from serve_app.demo import CHECKPOINT
from serve_app.engines.transformers import checkpoint
from serve_app.engines.vllm import args as vllm_args
from tests.vllm_models import needs_vllm


@needs_vllm
@pytest.mark.parametrize(
    ("num_gpus", "given", "share"), [(0.5, {}, 0.46), (1, {}, 0.92), (0.5, {"gpu_memory_utilization": 0.25}, 0.25)]
)
def test_vllm_gets_the_share_of_its_fraction(num_gpus: float, given: dict[str, float], share: float) -> None:
    config = ModelConfig(source="demo", engine="vllm", num_gpus=num_gpus, engine_args=given)
    assert vllm_args.engine_args(config, CHECKPOINT, []).gpu_memory_utilization == share


@needs_vllm
def test_the_whole_share_is_vllms_own_default() -> None:
    from vllm.config import CacheConfig

    assert CacheConfig().gpu_memory_utilization == VLLM_MEMORY_SHARE


@pytest.mark.parametrize(("num_gpus", "fractions"), [(0.5, [0.5]), (0.25, [0.25]), (0, [])])
def test_transformers_is_held_to_its_fraction_of_memory(
    monkeypatch: pytest.MonkeyPatch, num_gpus: float, fractions: list[float]
) -> None:
    limits: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limits.append)
    checkpoint._hold_to_fraction(ModelConfig(source="demo", num_gpus=num_gpus))
    assert limits == fractions

"""Machines for models: how large, how many, and which model fits on none."""

from typing import Any

import pytest

from serve_app.config.applications import IngressConfig, MetricsConfig, ModelConfig
from serve_app.errors import ConfigError
from serve_app.kubernetes.worker_groups import Application, WorkerGroup, num_bins, worker_groups


def model(name: str, least: int = 1, most: int = 1, **args: Any) -> Application:
    scaling = {"min_replicas": least, "max_replicas": most}
    return Application(name, ModelConfig.model_validate({"source": "x", "autoscaling": scaling} | args))


def gpu_group(*models: Application, gpus_per_machine: int | None = None) -> WorkerGroup:
    (group,) = (g for g in worker_groups(models, 8, gpus_per_machine) if g.num_gpus)
    return group


@pytest.mark.parametrize(
    ("args", "num_gpus", "machines"),
    [
        ({"num_gpus": 1}, 1, (1, 3)),
        ({"num_gpus": 4}, 4, (1, 3)),
        ({"num_gpus": 0.5}, 1, (1, 2)),
        ({"num_gpus": 0.4}, 1, (1, 2)),  # two fit on a GPU, the rest of it is nobody's
        ({"num_gpus": 0.6}, 1, (1, 3)),
        ({"tensor_parallel_size": 4, "placement_strategy": "STRICT_PACK"}, 4, (1, 3)),
        ({"tensor_parallel_size": 4, "placement_strategy": "PACK"}, 4, (1, 3)),
        ({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}, 4, (2, 6)),  # each stage in one machine
        ({"tensor_parallel_size": 4, "placement_strategy": "SPREAD"}, 1, (4, 12)),
        ({"tensor_parallel_size": 4, "placement_strategy": "STRICT_SPREAD"}, 1, (4, 12)),
    ],
)
def test_the_machine_fits_what_belongs_together(
    args: dict[str, Any], num_gpus: int, machines: tuple[int, int]
) -> None:
    group = gpu_group(model("m", 1, 3, **args))
    assert (group.num_gpus, (group.min_machines, group.max_machines)) == (num_gpus, machines)


def test_small_models_share_the_large_ones_machines() -> None:
    large = model("large", 1, 2, tensor_parallel_size=2, placement_strategy="STRICT_PACK")
    small = [model("a", 1, 4, num_gpus=1), model("b", 0, 1, num_gpus=0.5), model("c", 1, 1, num_gpus=0.5)]
    group = gpu_group(large, *small)
    assert (group.num_gpus, group.min_machines, group.max_machines) == (2, 2, 5)  # 2 + 1 + 1 and 4 + 4 + 1 GPUs


def test_machines_larger_than_needed_and_too_small() -> None:
    pair = model("pair", 1, 2, tensor_parallel_size=2, placement_strategy="STRICT_PACK")
    assert gpu_group(pair, gpus_per_machine=8).max_machines == 1
    with pytest.raises(
        ConfigError, match="'pair' needs 2 GPUs in one machine and gpus_per_machine is 1: raise it to 2"
    ):
        gpu_group(pair, gpus_per_machine=1)
    apart = model("apart", 1, 1, tensor_parallel_size=3, placement_strategy="STRICT_SPREAD")
    assert gpu_group(apart, gpus_per_machine=8).min_machines == 3


def test_gpus_run_out_before_cpus() -> None:
    hungry = model("hungry", num_gpus=0.5, num_cpus=3)
    light = model("light", tensor_parallel_size=2, num_cpus=1)
    assert gpu_group(hungry, light).num_cpus == 12  # four of the hungry on two GPUs
    assert gpu_group(light).num_cpus == 1
    ingress = Application("ingress", IngressConfig(num_cpus=2, num_replicas=3))
    groups = worker_groups([hungry, light, ingress], 8)
    assert [group.num_cpus for group in groups] == [8, 12 + 2 * 2]  # at most two of the three stand there


def test_what_needs_no_gpu_has_a_group_without() -> None:
    front = [Application("ingress", IngressConfig(num_replicas=2)), Application("metrics", MetricsConfig())]
    assert worker_groups(front, 8) == [WorkerGroup("cpu", 8, 0, 2, 2)]  # two: one of them may die
    small = model("small", 1, 5, num_cpus=4)
    assert worker_groups([*front, small], 8) == [WorkerGroup("cpu", 8, 0, 2, 3)]
    with pytest.raises(ConfigError, match="'small' needs 4 CPUs and cpus_per_machine is 2: raise it to 4"):
        worker_groups([small], 2)


def test_a_model_scaled_to_zero_needs_no_machine_yet() -> None:
    assert gpu_group(model("m", 0, 2, num_gpus=1)).min_machines == 0


@pytest.mark.parametrize(
    ("sizes", "capacity", "bins"),
    [([], 8, 0), ([8.0], 8, 1), ([5.0, 5.0], 8, 2), ([3.0, 5.0, 4.0, 4.0], 8, 2), ([0.1] * 10, 1, 1)],
)
def test_bins(sizes: list[float], capacity: float, bins: int) -> None:
    assert num_bins(sizes, capacity) == bins

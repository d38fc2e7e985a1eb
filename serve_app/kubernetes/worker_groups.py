"""How many machines of which size a config's models need: one group with GPUs, one without.

A machine is sized so that the largest part of a replica that must not be split fits on it; the group's limits follow
from the models' autoscaling. Knows nothing of Kubernetes or Ray.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor

from serve_app.config.applications import ApplicationConfig, IngressConfig, ModelConfig
from serve_app.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Application:
    """An application's name and its checked args."""

    name: str
    config: ApplicationConfig


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """Machines of one size, between `min_machines` and `max_machines` of them."""

    name: str
    num_cpus: int
    num_gpus: int
    min_machines: int
    max_machines: int


def worker_groups(
    applications: Sequence[Application], cpus_per_machine: int, gpus_per_machine: int | None = None
) -> list[WorkerGroup]:
    """The groups these applications need; `gpus_per_machine` None takes as few as the largest model allows.

    Raises `ConfigError` where a replica fits on no machine of that size.
    """
    models = [app for app in applications if isinstance(app.config, ModelConfig) and gpus_of(app.config)]
    groups = [_cpu_group([app for app in applications if app not in models], cpus_per_machine)]
    if models:
        fronts = [app.config for app in applications if isinstance(app.config, IngressConfig)]
        front_cpus = sum(front.num_cpus * ingress_per_machine(front) for front in fronts)
        groups.append(_gpu_group(models, gpus_per_machine, front_cpus))
    return groups


def gpus_of(config: ModelConfig) -> list[float]:
    """The GPU share of each bundle of a replica: one number where it needs no placement group, none without GPUs."""
    if config.placement_bundles is None:
        gpus = [config.actor_options.get("num_gpus", 0.0)]
    else:
        gpus = [bundle.get("GPU", 0.0) for bundle in config.placement_bundles]
    return [float(share) for share in gpus if share]


def ingress_per_machine(config: IngressConfig) -> int:
    """How many ingress replicas one machine may hold: half of them, so that one machine's end leaves the others."""
    return ceil(config.num_replicas / 2)


def _gpu_group(models: Sequence[Application], gpus_per_machine: int | None, front_cpus: float) -> WorkerGroup:
    configs = [app.config for app in models if isinstance(app.config, ModelConfig)]
    num_gpus = gpus_per_machine or max(_gpus_together(config) for config in configs)
    for app, config in zip(models, configs, strict=True):
        if (needed := _least_gpus(config)) > num_gpus:
            raise ConfigError(
                f"application '{app.name}' needs {needed} GPUs in one machine and gpus_per_machine is {num_gpus}: "
                f"raise it to {needed}, or set another placement_strategy"
            )
    # So many CPUs that GPUs run out first, whatever mix of models stands there with ingress replicas beside it.
    density = max(config.num_cpus / _gpu_share(config) for config in configs)
    num_cpus = max(density * num_gpus, *(config.num_cpus for config in configs), 1.0)
    least = _machines_for_gpus([(config, config.autoscaling.min_replicas) for config in configs], num_gpus)
    most = _machines_for_gpus([(config, config.autoscaling.max_replicas) for config in configs], num_gpus)
    return WorkerGroup("gpu", ceil(num_cpus + front_cpus), num_gpus, least, most)


def _gpu_share(config: ModelConfig) -> float:
    """The part of a GPU that each of as many replicas as fit on one takes: 0.4 leaves a fifth unused, so 0.5."""
    share = sum(gpus_of(config))
    return 1 / floor(1 / share + 1e-9) if share < 1 else share


def _least_gpus(config: ModelConfig) -> int:
    """The GPUs that one machine must have for this model to start at all."""
    gpus = gpus_of(config)
    return ceil(sum(gpus) if config.placement_strategy == "STRICT_PACK" else max(gpus))


def _gpus_together(config: ModelConfig) -> int:
    """The GPUs that one machine should have: tensor ranks talk at every layer, pipeline stages can be apart."""
    if config.placement_strategy == "PACK" and config.num_ranks > 1:
        return config.tensor_parallel_size
    return _least_gpus(config)


def _machines_for_gpus(counts: Iterable[tuple[ModelConfig, int]], num_gpus: int) -> int:
    """Machines for so many replicas of each model. Fractions share a GPU, and never two GPUs one fraction."""
    parts: list[float] = []
    fractions: list[float] = []
    apart = 0
    for config, num_replicas in counts:
        for part in _parts(config, num_gpus):
            (parts if part >= 1 else fractions).extend([part] * num_replicas)
        if config.placement_strategy == "STRICT_SPREAD" and num_replicas:
            apart = max(apart, len(gpus_of(config)))
    shared = [1.0] * num_bins(fractions, 1)
    return max(num_bins(parts + shared, num_gpus), apart)


def _parts(config: ModelConfig, num_gpus: int) -> list[float]:
    """A replica's GPUs, in the pieces that each stand on one machine."""
    gpus = gpus_of(config)
    if config.placement_strategy == "STRICT_PACK":
        return [sum(gpus)]
    if config.placement_strategy == "PACK" and len(gpus) > 1:
        whole, rest = divmod(len(gpus), num_gpus)
        return [float(num_gpus)] * whole + [float(rest)] * bool(rest)
    return gpus


def _cpu_group(applications: Sequence[Application], cpus_per_machine: int) -> WorkerGroup:
    """Machines for what needs no GPU. Two at least where the ingress has two replicas: one may die."""
    least: list[float] = []
    most: list[float] = []
    num_apart = 1
    for app in applications:
        config = app.config
        if config.num_cpus > cpus_per_machine:
            raise ConfigError(
                f"application '{app.name}' needs {config.num_cpus:g} CPUs and cpus_per_machine is "
                f"{cpus_per_machine}: raise it to {ceil(config.num_cpus)}"
            )
        if isinstance(config, ModelConfig):
            least += [config.num_cpus] * config.autoscaling.min_replicas
            most += [config.num_cpus] * config.autoscaling.max_replicas
            continue
        num_replicas = config.num_replicas if isinstance(config, IngressConfig) else 1
        num_apart = max(num_apart, min(2, num_replicas))
        least += [config.num_cpus] * num_replicas
        most += [config.num_cpus] * num_replicas
    min_machines = max(num_bins(least, cpus_per_machine), num_apart)
    return WorkerGroup("cpu", cpus_per_machine, 0, min_machines, max(num_bins(most, cpus_per_machine), min_machines))


def num_bins(sizes: Iterable[float], capacity: float) -> int:
    """How many bins of that capacity hold these sizes, first fit decreasing."""
    left: list[float] = []
    for size in sorted(sizes, reverse=True):
        for index, room in enumerate(left):
            if size <= room + 1e-9:
                left[index] -= size
                break
        else:
            left.append(capacity - size)
    return len(left)

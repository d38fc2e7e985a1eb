"""The builders: their annotations are classes, and a config's values reach the deployment."""

import asyncio
import inspect
from types import SimpleNamespace
from typing import Any, cast

import pytest

from serve_app import app
from serve_app.config.applications import IngressConfig, MetricsConfig, ModelConfig
from serve_app.config.file import BUILDERS
from serve_app.deployments.ingress import IngressDeployment
from serve_app.metrics.reporter import Reporter
from serve_app.metrics.snapshot import Snapshot, Source
from serve_app.models.entry import num_places


def deployment_of(application: Any) -> Any:
    return application._bound_deployment


@pytest.mark.parametrize("path", BUILDERS)
def test_builders_are_annotated_with_classes(path: str) -> None:
    """With a string instead, Ray Serve would pass a bare dict and check nothing."""
    builder = getattr(app, path.split(":")[1])
    (parameter,) = inspect.signature(builder).parameters.values()
    assert parameter.annotation is BUILDERS[path]


def test_a_models_values_reach_its_deployment() -> None:
    config = ModelConfig.model_validate(
        {"source": "x", "num_gpus": 0.5, "num_cpus": 2, "max_batch_size": 4, "max_queued_requests": 7,
         "autoscaling": {"min_replicas": 0, "max_replicas": 3}}
    )  # fmt: skip
    deployment = deployment_of(app.build_model(config))
    assert deployment.ray_actor_options["num_gpus"] == 0.5
    assert deployment.ray_actor_options["num_cpus"] == 2
    assert deployment.max_ongoing_requests == 8
    assert deployment.max_queued_requests == 7
    scaling = deployment._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas, scaling.target_ongoing_requests) == (0, 3, 4)


@pytest.mark.parametrize("num_replicas", [1, 2, 40])
@pytest.mark.parametrize(
    "args",
    [{"engine": "vllm"}, {"engine": "vllm", "engine_args": {"max_num_seqs": 1024}}, {"max_batch_size": 400}, {}],
)
def test_whatever_admission_lets_in_at_once_fits_before_a_models_replicas(
    args: dict[str, Any], num_replicas: int
) -> None:
    """Also while one replica is there and has it all."""
    config = ModelConfig.model_validate({"source": "x", **args, "autoscaling": {"max_replicas": num_replicas}})
    assert config.queued_limit >= num_places(config.ongoing_limit, num_replicas)
    assert config.queued_limit == deployment_of(app.build_model(config)).max_queued_requests


def test_several_ranks_get_a_bundle_each() -> None:
    config = ModelConfig(source="x", tensor_parallel_size=2, num_cpus=3, placement_strategy="STRICT_PACK")
    replica = deployment_of(app.build_model(config))._replica_config
    assert replica.placement_group_bundles == [{"CPU": 3.0}, {"GPU": 1.0}, {"GPU": 1.0}]
    assert replica.placement_group_strategy == "STRICT_PACK"
    assert "num_gpus" not in config.actor_options


def test_the_ingress_and_the_sidecar() -> None:
    assert deployment_of(app.build_ingress(IngressConfig(num_replicas=2))).num_replicas == 2
    assert deployment_of(app.build_metrics(MetricsConfig())).num_replicas == 1


async def test_an_ingress_that_stops_says_its_last_word() -> None:
    """What ended well since its last push would count as dead with it."""
    told: list[Snapshot] = []

    async def send(snapshot: Snapshot) -> None:
        told.append(snapshot)

    reporter = Reporter(lambda: (), Source("ingress", "ingress", "a", "a", 0.0), send, period_s=60)
    reporter.start()
    work = asyncio.create_task(asyncio.sleep(60))
    ends = IngressDeployment.__del__  # of no instance: the collector would call it once more
    async with asyncio.timeout(10):
        await ends(cast(Any, SimpleNamespace(_tasks=[work], _reporter=reporter)))
    assert told[-1].is_final
    await asyncio.wait({work})
    assert work.cancelled()
    await ends(cast(Any, SimpleNamespace(_tasks=[])))  # its start failed: there is nobody to tell

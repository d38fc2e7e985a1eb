"""Puts things together: config in, Ray Serve applications out. The import paths of `serve_config.yaml`.

No `from __future__ import annotations` here: Ray Serve reads the builders' annotations as classes.
"""

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from serve_app.config.applications import IngressConfig, MetricsConfig, ModelConfig
from serve_app.deployments.ingress import IngressDeployment
from serve_app.deployments.lane import haproxy_is_on
from serve_app.deployments.metrics import MetricsDeployment
from serve_app.deployments.model import ModelDeployment
from serve_app.engines.vllm import args as vllm_args
from serve_app.engines.vllm import ranks as vllm_ranks
from serve_app.playground.deployment import build_playground as build_playground
from serve_app.routing.request_router import AffinityRouter

# A dead replica is noticed within a period, a hung one within the timeout; see docs/operations.md.
HEALTH_CHECK_PERIOD_S = 2.0
HEALTH_CHECK_TIMEOUT_S = 10.0
_SIDECAR_CALLS = 10_000  # each process that serves HTTP keeps one open
_SIDECAR_DRAIN_S = 3.0  # those open calls would hold its end up for longer, and nobody depends on them
_NO_ACCESS_LOG = {"enable_access_log": False}  # each request has a line of ours


def build_model(config: ModelConfig) -> Application:
    """One model, on replicas of its own. The application's name is the model's name. Raises `ConfigError`."""
    if config.needs_vllm:
        vllm_ranks.check_ranks(config)
    if config.needs_vllm and vllm_args.is_installed():  # else only the replicas' nodes can tell
        vllm_args.check_engine_args(config)
    deployment = serve.deployment(
        serve.ingress()(ModelDeployment),
        name="Model",
        ray_actor_options=config.actor_options,
        placement_group_bundles=config.placement_bundles,
        placement_group_strategy=config.placement_strategy if config.placement_bundles else None,
        autoscaling_config=config.autoscaling_options,
        request_router_config=_request_router(config),
        max_ongoing_requests=config.reached_limit if haproxy_is_on() else config.ongoing_limit,
        max_queued_requests=config.queued_limit,
        graceful_shutdown_timeout_s=config.drain_timeout_s,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        max_constructor_retry_count=config.start_attempts,
        logging_config=_NO_ACCESS_LOG,
    )
    return deployment.bind(config)


def _request_router(config: ModelConfig) -> RequestRouterConfig:
    if config.balancing == "affinity" and not haproxy_is_on():
        return RequestRouterConfig(request_router_class=AffinityRouter)
    # Ray Serve's own: power of two choices. Beside HAProxy, Ray Serve lets no deployment that can be reached by HTTP
    # have a router of its own.
    return RequestRouterConfig()


def build_ingress(config: IngressConfig) -> Application:
    """The HTTP front of every model named in its `user_config`."""
    deployment = serve.deployment(
        serve.ingress()(IngressDeployment),
        name="Ingress",
        num_replicas=config.num_replicas,
        ray_actor_options={"num_cpus": config.num_cpus},
        max_ongoing_requests=config.max_ongoing_requests,
        graceful_shutdown_timeout_s=config.request_timeout_s,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
        user_config={},
        logging_config=_NO_ACCESS_LOG,
    )
    return deployment.bind(config)


def build_metrics(config: MetricsConfig) -> Application:
    """The metrics sidecar: one small actor that every other process reports to."""
    deployment = serve.deployment(
        serve.ingress()(MetricsDeployment),
        name="Metrics",
        num_replicas=1,
        ray_actor_options={"num_cpus": config.num_cpus},
        max_ongoing_requests=_SIDECAR_CALLS,
        graceful_shutdown_timeout_s=_SIDECAR_DRAIN_S,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        health_check_timeout_s=HEALTH_CHECK_TIMEOUT_S,
    )
    return deployment.bind(config)

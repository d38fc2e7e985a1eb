"""What a file's settings say without any node: those that can never take effect, and names that lead nowhere."""

from collections.abc import Iterator
from math import inf
from typing import Any

from serve_app.config.applications import IngressConfig, MetricsConfig, ModelConfig, PlaygroundConfig
from serve_app.models.entry import num_places
from serve_app.plan.addresses import address_findings
from serve_app.plan.application import Application
from serve_app.plan.finding import Finding, error, note, warning
from serve_app.plan.start import start_findings
from serve_app.strict import nearest_hint

_DEPLOYMENTS: dict[type, str] = {
    ModelConfig: "Model",
    IngressConfig: "Ingress",
    MetricsConfig: "Metrics",
    PlaygroundConfig: "Playground",
}
# What a deployment may say beside args without changing what was checked or promised; all else overrides it.
_HARMLESS = ("name", "user_config", "logging_config", "rolling_update_percentage", "max_surge_percent")
_INSTEAD = {
    "graceful_shutdown_timeout_s": "take it out: set a model's drain_timeout_s, an ingress's request_timeout_s",
    "request_router_config": "take it out and set args.balancing",
    "max_constructor_retry_count": "take it out and set args.start_attempts",
    "health_check_period_s": "take it out: how soon a dead or hung replica is noticed was measured without it",
    "health_check_timeout_s": "take it out: how soon a dead or hung replica is noticed was measured without it",
}
_STARTS_PER_REPLICA = 3  # Ray Serve's RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT, where nobody sets it


def settings_findings(values: dict[str, Any], applications: list[Application]) -> Iterator[Finding]:
    """Every finding about settings, in the file's order."""
    for app, application in zip(values["applications"], applications, strict=True):
        if application.config is None:
            yield note(
                application.place,
                f"{application.title} isn't one of this package's: its needs aren't counted",
                "give --nodes without what it takes",
            )
            continue
        yield from _deployments(application)
        if application.model:
            place = f"{application.place} '{application.name}': args"
            seen = _seen_at_once(application.model, app.get("route_prefix", "/") is not None, applications)
            yield from _scaling(application.model, f"{place}.autoscaling", *seen)
            yield from _load(application.model, place)
            yield from _without_effect(application.model, place)
            yield from start_findings(application.model, place)
    yield from _routing(values, applications)
    yield from address_findings(values, applications)


def _deployments(application: Application) -> Iterator[Finding]:
    """Serve's own overrides: of a deployment that doesn't exist, or past the settings that are checked here."""
    name = _DEPLOYMENTS[type(application.config)]
    for index, deployment in enumerate(application.deployments):
        place = f"{application.place} '{application.name}': deployments[{index}]"
        if deployment.get("name") != name:
            yield error(
                f"{place}.name",
                f"there is no deployment '{deployment.get('name')}' in it, and Ray Serve refuses the whole "
                "application",
                f"name it {name}",
            )
        for key in deployment:
            if key not in _HARMLESS:
                yield warning(
                    f"{place}.{key}",
                    f"it overrides what args and this package say of {application.title}, and isn't counted here",
                    _INSTEAD.get(key, "take it out and set it in args"),
                )


def _seen_at_once(model: ModelConfig, has_lane: bool, applications: list[Application]) -> tuple[int, float]:
    """The most requests that autoscaling sees of one replica: those that it holds, and those that wait for it.

    An ingress lets a few more go to the replica than run, and its sidecar tells of those that wait. What comes by the
    model's own lane is with the replica or in Ray Serve's queue, both of which Ray Serve counts.
    """
    sidecars = {a.name for a in applications if isinstance(a.config, MetricsConfig)}
    waiting: float = sum(
        a.num_at_start * a.config.admission.max_waiting_requests
        for a in applications
        if isinstance(a.config, IngressConfig)
        and a.config.metrics_application == model.metrics_application in sidecars
    )
    if has_lane:
        queued = inf if model.queued_limit < 0 else model.queued_limit
        return model.ongoing_limit, waiting + queued
    in_replica = num_places(min(model.num_running_at_once, model.ongoing_limit), num_replicas=1)
    if model.engine != "scripted" and not model.needs_vllm:
        # Where none can join a running batch, which is known once the model is loaded, the next one waits at hand.
        waiting += num_places(min(2 * model.num_running_at_once, model.ongoing_limit), num_replicas=1) - in_replica
    return in_replica, waiting


def _scaling(model: ModelConfig, place: str, in_replica: int, waiting: float) -> Iterator[Finding]:
    """Autoscaling sees at most `in_replica` requests in a replica, and `waiting` that wait for it."""
    scaling = model.autoscaling
    full = min(model.num_running_at_once, model.ongoing_limit)
    target = float(model.autoscaling_options["target_ongoing_requests"])
    fields = scaling.model_fields_set - {"min_replicas", "max_replicas"}
    if scaling.min_replicas == scaling.max_replicas:
        if fields:
            yield warning(
                f"{place}.{min(fields)}",
                f"{', '.join(sorted(fields))} can never take effect: min_replicas and max_replicas are both "
                f"{scaling.min_replicas}",
                "raise max_replicas, or leave them out",
            )
        return
    if scaling.pressure_targets:  # the greatest need decides, and another than requests may be reached
        return
    if target >= in_replica + waiting:
        yield error(
            f"{place}.max_replicas",
            f"a second replica can never start: one holds at most {in_replica} requests and {waiting} that wait are "
            f"counted, together {in_replica + waiting}, and more than the target of {target:g} is never reached",
            f"set target_ongoing_requests to {full} at most",
        )
    elif target >= in_replica:
        yield warning(
            f"{place}.target_ongoing_requests",
            f"a second replica starts only when requests wait already: one is full at {full}, and the target is "
            f"{target:g}",
            f"set target_ongoing_requests to {full} at most",
        )


def _load(model: ModelConfig, place: str) -> Iterator[Finding]:
    if model.max_queued_requests == 0:
        yield error(
            f"{place}.max_queued_requests",
            "every request passes the queue, so with none allowed every request is refused",
            "set 1 or more, or -1 for no limit",
        )
    if model.ongoing_limit < model.num_running_at_once:
        running = "engine_args.max_num_seqs" if model.engine == "vllm" else "max_batch_size"
        yield warning(
            f"{place}.max_ongoing_requests",
            f"a replica takes {model.ongoing_limit} requests at once and its engine could run "
            f"{model.num_running_at_once}: a full batch never comes together",
            f"raise it to {2 * model.num_running_at_once}, or lower {running}",
        )


def _without_effect(model: ModelConfig, place: str) -> Iterator[Finding]:
    fields = model.model_fields_set
    if model.num_ranks == 1 and "placement_strategy" in fields:
        yield warning(
            f"{place}.placement_strategy",
            "it never takes effect: the model has one rank, and no group to place",
            "leave it out, or set tensor_parallel_size",
        )
    most_starts = _STARTS_PER_REPLICA * model.autoscaling.max_replicas
    if model.start_attempts > most_starts:
        yield warning(
            f"{place}.start_attempts",
            f"no more than {most_starts} starts are tried: Ray Serve allows {_STARTS_PER_REPLICA} for each "
            f"replica that is to run, and max_replicas is {model.autoscaling.max_replicas}",
            f"set {most_starts}, or more in RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT where Ray starts",
        )
    for key in sorted(fields & {"max_batch_size", "batch_wait_s"}) if model.engine == "vllm" else ():
        yield warning(
            f"{place}.{key}",
            "it never takes effect: vLLM batches by itself",
            "leave it out, or set engine_args.max_num_seqs",
        )
    rest = round(1 - int(1 / model.num_gpus + 1e-6) * model.num_gpus, 4) if model.shares_gpu else 0.0
    if rest > 0:
        num = int(1 / model.num_gpus + 1e-6)
        yield note(
            f"{place}.num_gpus",
            f"a fraction lies on one GPU: {num} x {model.num_gpus:g} fits, and {rest:g} of the GPU stays for smaller "
            "fractions",
            f"set {1 / num:.4g} where only such replicas share the GPU",
        )


def _routing(values: dict[str, Any], applications: list[Application]) -> Iterator[Finding]:
    """The ingress's names: every model must be served by an application or an adapter, and be reachable."""
    models = {a.name: a for a in applications if a.model}
    adapters = {adapter: a.name for a in models.values() if a.model for adapter in a.model.adapters}
    for adapter, base in adapters.items():
        if adapter in models:
            yield error(
                f"{models[base].place} '{base}': args.adapters",
                f"adapter '{adapter}' has the name of a model",
                "give the adapter another name",
            )
    references = list(_references(applications))
    for place, name in references:
        if name not in models and name not in adapters:
            yield error(
                place,
                f"there is no model '{name}' in the file{nearest_hint(name, models)}",
                "add its application, or take the name out",
            )
    lanes = {a["name"]: prefix for a in values["applications"] if (prefix := a.get("route_prefix", "/")) is not None}
    for name, application in models.items():
        if references and name not in {named for _, named in references}:
            if name in lanes:
                yield note(
                    application.place,
                    f"no ingress names model '{name}': requests reach it at {lanes[name]} alone",
                    "add it to the ingress's user_config.models to have it at the common address too",
                )
                continue
            yield warning(
                application.place,
                f"no ingress names model '{name}': it takes its resources, and no request reaches it",
                "add it to the ingress's user_config.models, or take it out",
            )


def _references(applications: list[Application]) -> Iterator[tuple[str, str]]:
    """Each name that an ingress gives a model, with its place: in `models`, and as what an alias stands for."""
    for application in applications:
        if not isinstance(application.config, IngressConfig):
            continue
        for number, deployment in enumerate(application.deployments):
            place = f"{application.place} '{application.name}': deployments[{number}].user_config"
            config = deployment.get("user_config") or {}
            for name in config.get("models") or ():
                yield f"{place}.models", name
            for alias, targets in (config.get("aliases") or {}).items():
                for name in targets if isinstance(targets, dict | list | tuple) else [targets]:
                    yield f"{place}.aliases.{alias}", str(name)

"""How requests reach the file's models, and what else must be there for it: an address, time enough, the sidecar."""

from collections.abc import Iterator
from typing import Any

from serve_app.config.applications import IngressConfig, MetricsConfig, ModelConfig
from serve_app.plan.application import Application
from serve_app.plan.finding import Finding, error, warning


def address_findings(values: dict[str, Any], applications: list[Application]) -> Iterator[Finding]:
    """Findings about the file as a whole."""
    prefixes = [app.get("route_prefix", "/") for app in values["applications"]]  # Ray Serve's default
    doors = [
        application
        for application, prefix in zip(applications, prefixes, strict=True)
        if prefix is not None and isinstance(application.config, ModelConfig | IngressConfig)
    ]
    if any(application.model for application in applications) and not doors:
        yield error(
            "applications",
            "no request reaches any model: there is no ingress with a route_prefix, and no model has one",
            "add an application of serve_app.app:build_ingress with route_prefix: /, or give a model a route_prefix",
        )
    yield from _timeouts(values, doors)
    yield from _sidecar(applications)


def _timeouts(values: dict[str, Any], doors: list[Application]) -> Iterator[Finding]:
    """Ray Serve's own limit ends what our applications would still answer."""
    limit_s = (values.get("http_options") or {}).get("request_timeout_s")
    if not isinstance(limit_s, int | float) or limit_s <= 0:  # Ray Serve's words for no limit
        return
    longer = {door.name: timeout_s for door in doors if (timeout_s := _timeout_s(door)) > limit_s}
    if longer:
        names = ", ".join(f"'{name}' {timeout_s:g} s" for name, timeout_s in longer.items())
        yield warning(
            "http_options.request_timeout_s",
            f"Ray Serve ends every request after {limit_s:g} s, and the applications would take longer: {names}",
            f"leave it out, set it above {max(longer.values()):g}, or lower the applications' request_timeout_s",
        )


def _timeout_s(door: Application) -> float:
    config = door.config
    assert isinstance(config, ModelConfig | IngressConfig), "a door is a model's or an ingress"
    return (config.http if isinstance(config, ModelConfig) else config).request_timeout_s


def _sidecar(applications: list[Application]) -> Iterator[Finding]:
    """Those that report to a metrics application which isn't there."""
    sidecars = {application.name for application in applications if isinstance(application.config, MetricsConfig)}
    lost: dict[str, list[str]] = {}
    for application in applications:
        if isinstance(application.config, ModelConfig | IngressConfig):
            sidecar = application.config.metrics_application
            if sidecar is not None and sidecar not in sidecars:
                lost.setdefault(sidecar, []).append(f"'{application.name}'")
    for sidecar, names in lost.items():
        yield warning(
            "applications",
            f"{', '.join(names)} report to the metrics application '{sidecar}', which isn't in the file: there are "
            "no numbers, every process counts keys' limits for itself, and a request is called off only where it "
            "runs",
            f"add an application '{sidecar}' of serve_app.app:build_metrics with route_prefix: /metrics, or set "
            "metrics_application: null",
        )

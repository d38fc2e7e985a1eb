"""A config file's applications as a plan sees them: what each replica asks for, and how many there are to be."""

from dataclasses import dataclass
from typing import Any

from serve_app.config.applications import ApplicationConfig, IngressConfig, ModelConfig
from serve_app.config.file import BUILDERS
from serve_app.placement.packing import Need, need_of


@dataclass(frozen=True, slots=True)
class Application:
    """One application. `config` is None for one that isn't ours, whose needs are unknown."""

    name: str
    place: str
    config: ApplicationConfig | None
    need: Need
    num_at_start: int
    num_at_most: int
    deployments: tuple[dict[str, Any], ...]

    @property
    def model(self) -> ModelConfig | None:
        return self.config if isinstance(self.config, ModelConfig) else None

    @property
    def title(self) -> str:
        return f"model '{self.name}'" if self.model else f"application '{self.name}'"


def applications_of(values: dict[str, Any]) -> list[Application]:
    """The applications of a file that `read_config_file` has checked."""
    return [_application(app, f"applications[{index}]") for index, app in enumerate(values["applications"])]


def _application(app: dict[str, Any], place: str) -> Application:
    builder = BUILDERS.get(app["import_path"])
    config = builder.model_validate(app.get("args") or {}) if builder else None
    deployments = tuple(app.get("deployments") or ())
    if isinstance(config, ModelConfig):
        need = need_of(config.actor_options, config.placement_bundles, config.placement_strategy)
        scaling = config.autoscaling
        counts = (scaling.min_replicas, scaling.max_replicas)
    else:
        need = need_of({"num_cpus": config.num_cpus if config else 0.0})
        counts = (config.num_replicas,) * 2 if isinstance(config, IngressConfig) else (1, 1)
    return Application(app["name"], place, config, need, *counts, deployments)

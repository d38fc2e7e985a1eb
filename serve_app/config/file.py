"""A Serve config file, read and checked before anything is started: every mistake is one sentence with its place."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from serve_app.config.applications import (
    ApplicationConfig,
    IngressConfig,
    MetricsConfig,
    ModelConfig,
    PlaygroundConfig,
    RoutingConfig,
)
from serve_app.config.environment import secret_in
from serve_app.config.http import KeysConfig
from serve_app.errors import ConfigError
from serve_app.strict import first_sentence, nearest_hint
from serve_app.yaml_text import parse_yaml

# Each builder, by the import path that a config file names, and the args that it takes.
BUILDERS: dict[str, type[ApplicationConfig]] = {
    "serve_app.app:build_model": ModelConfig,
    "serve_app.app:build_ingress": IngressConfig,
    "serve_app.app:build_metrics": MetricsConfig,
    "serve_app.app:build_playground": PlaygroundConfig,
}
_FILE_KEYS = (
    "proxy_location", "http_options", "grpc_options", "controller_options", "logging_config", "tracing_config",
    "applications", "target_capacity",
)  # fmt: skip
_APPLICATION_KEYS = (
    "name", "route_prefix", "import_path", "runtime_env", "host", "port", "deployments", "autoscaling_policy",
    "args", "logging_config", "external_scaler_enabled",
)  # fmt: skip


def read_config_file(path: Path) -> dict[str, Any]:
    """The file as Ray Serve takes it (`ServeDeploySchema`), our applications' args checked.

    Raises `ConfigError` with a sentence naming the file, the place in it, and the fix.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise ConfigError(f"{path} doesn't exist: name a Serve config file, or none for the demo") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} can't be read: {exc}") from exc
    values: dict[str, Any] = parse_yaml(text, str(path))
    try:
        _check(values)
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    return values


def takes(app: dict[str, Any], config: type[BaseModel]) -> bool:
    """Whether the application's builder takes this class of config."""
    return BUILDERS.get(app["import_path"]) is config


def model_names(values: dict[str, Any]) -> list[str]:
    """The names of the file's model applications."""
    return [app["name"] for app in values["applications"] if takes(app, ModelConfig)]


def _check(values: Any) -> None:
    if not isinstance(values, dict) or not values.get("applications"):
        raise ConfigError("a Serve config is a mapping with a list 'applications'; see the README's example")
    _check_keys(values, _FILE_KEYS, "the file")
    if not isinstance(values["applications"], list):
        raise ConfigError("'applications' must be a list of applications")
    seen: dict[str, list[str]] = {"name": [], "route_prefix": []}
    for index, app in enumerate(values["applications"]):
        _check_application(app, f"applications[{index}]")
        for key, before in seen.items():
            value = app.get(key, "/" if key == "route_prefix" else None)  # Ray Serve's default
            if value is not None and value in before:
                raise ConfigError(f"applications[{index}]: {key} '{value}' is taken by an application above it")
            before.append(value)
    _check_ingress_models(values)
    _check_keys_at_every_door(values)


def _check_application(app: Any, place: str) -> None:
    if not isinstance(app, dict):
        raise ConfigError(f"{place} must be a mapping with 'name' and 'import_path'")
    _check_keys(app, _APPLICATION_KEYS, place)
    for key in ("name", "import_path"):
        if not isinstance(app.get(key), str):
            raise ConfigError(f"{place}: '{key}' is missing or no text")
    place = f"{place} '{app['name']}'"
    builder = app["import_path"]
    if builder in BUILDERS:
        _validate(BUILDERS[builder], app.get("args") or {}, f"{place}: args")
    elif builder.startswith("serve_app"):
        raise ConfigError(f"{place}: import_path '{builder}' doesn't exist{nearest_hint(builder, BUILDERS)}")
    _check_env_vars(app.get("runtime_env"), f"{place}: runtime_env")
    for deployment in app.get("deployments") or []:
        if not isinstance(deployment, dict) or not isinstance(deployment.get("name"), str):
            raise ConfigError(f"{place}: deployments: each is a mapping with a 'name', such as {{name: Ingress}}")
        options = deployment.get("ray_actor_options")
        if isinstance(options, dict):
            _check_env_vars(options.get("runtime_env"), f"{place}: ray_actor_options: runtime_env")
        if takes(app, IngressConfig) and "user_config" in deployment:
            _validate(RoutingConfig, deployment["user_config"], f"{place}: user_config")
        elif builder in BUILDERS and deployment.get("user_config") is not None:
            raise ConfigError(f"{place}: only an ingress has a user_config: take it out, and set args")


def _check_env_vars(runtime_env: Any, place: str) -> None:
    """Ray's own way to set variables is in its logs too."""
    variables = runtime_env.get("env_vars") if isinstance(runtime_env, dict) else None
    if isinstance(variables, dict) and (why := secret_in(variables)):
        raise ConfigError(f"{place}: env_vars: {why}")


def _check_ingress_models(values: dict[str, Any]) -> None:
    """An ingress that names no model serves nothing; one that names a missing model is a state, not an error."""
    for app in values["applications"]:
        if takes(app, IngressConfig):
            configs = [d.get("user_config") or {} for d in app.get("deployments") or []]
            if not any(config.get("models") for config in configs):
                names = ", ".join(model_names(values))
                raise ConfigError(
                    f"application '{app['name']}' names no models: add deployments: "
                    f"[{{name: Ingress, user_config: {{models: [{names}]}}}}]"
                )


def _check_keys_at_every_door(values: dict[str, Any]) -> None:
    """A service with a file of keys has no application that answers HTTP without one."""
    doors = {
        app["name"]: BUILDERS[app["import_path"]].model_validate(app.get("args") or {})
        for app in values["applications"]
        if app["import_path"] in BUILDERS and app.get("route_prefix", "/") is not None
    }
    closed = next((name for name, config in doors.items() if _keys(config).file), None)
    for name, config in doors.items():
        if closed and not _keys(config).file:
            where = "args: http: keys" if isinstance(config, ModelConfig) else "args: keys"
            raise ConfigError(
                f"application '{name}' answers HTTP to everybody, while '{closed}' wants keys: give it the same "
                f"{where}, or route_prefix: null"
            )


def _keys(config: ApplicationConfig) -> KeysConfig:
    return config.http.keys if isinstance(config, ModelConfig) else config.keys


def _check_keys(values: dict[Any, Any], valid: tuple[str, ...], place: str) -> None:
    for key in values:
        if key not in valid:
            raise ConfigError(f"{place}: unknown key '{key}'{nearest_hint(str(key), valid)}")


def _validate(config: type[BaseModel], values: Any, place: str) -> None:
    try:
        config.model_validate(values)
    except ValidationError as exc:
        raise ConfigError(f"{place}: {first_sentence(exc)}") from exc

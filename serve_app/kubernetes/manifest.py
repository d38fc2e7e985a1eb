"""A Serve config as a KubeRay `RayService`: fills in the template rayservice.yaml, which says what a pod is.

A test checks every manifest against KubeRay's schema. Knows nothing about the cluster it will be applied to.
"""

import json
from dataclasses import asdict
from importlib.metadata import version
from math import ceil
from pathlib import Path
from string import Template
from typing import Annotated, Any

import yaml
from pydantic import Field, field_validator

from serve_app import __version__
from serve_app.config.applications import ApplicationConfig, IngressConfig, ModelConfig
from serve_app.config.file import BUILDERS
from serve_app.config.serve_settings import HAPROXY_BINARY, HAPROXY_SETTINGS, SERVE_SETTINGS
from serve_app.errors import ConfigError
from serve_app.kubernetes.worker_groups import Application, WorkerGroup, ingress_per_machine, worker_groups
from serve_app.strict import Strict

KubernetesName = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]{0,45}[a-z0-9])?$")]  # KubeRay adds 6 and allows 53
SecretKey = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_DEFAULT_PORT = 8000
_LAUNCHER = "/opt/serve_app/bin/serve-app-haproxy"  # where cluster/Dockerfile installs it
_STOP_MARGIN_S = 30  # after the drain, for Ray's own end
_NO_GPUS = WorkerGroup("gpu", num_cpus=0, num_gpus=0, min_machines=0, max_machines=0)
_TEMPLATE = Template(Path(__file__).with_name("rayservice.yaml").read_text(encoding="utf-8"))


class ManifestOptions(Strict):
    """What the config file can't know about the cluster; the defaults fit the files in `cluster/`."""

    name: KubernetesName = "serve-app"
    namespace: KubernetesName = "serve-app"
    image: str = Field(f"registry.example/serve-app:{__version__}", min_length=1)
    secret: str = Field("serve-app-secrets", min_length=1)
    secret_env: tuple[SecretKey, ...] = ("HF_TOKEN", "SERVE_APP_API_KEYS")
    redis_address: str = Field("redis:6379", min_length=1)
    redis_secret: str = Field("serve-app-redis", min_length=1)
    cpus_per_machine: int = Field(8, ge=1)
    gpus_per_machine: int | None = Field(None, ge=1)
    gpu_resource: str = Field("nvidia.com/gpu", min_length=1)
    gpu_node_selector: dict[str, str] = Field(default_factory=dict)
    memory_gib_per_cpu: int = Field(4, ge=1)
    memory_gib_per_gpu: int = Field(32, ge=0)
    cache_claim: str | None = None
    haproxy: bool = False

    @field_validator("image")
    @classmethod
    def _image_is_pinned(cls, image: str) -> str:
        if "@" not in image and (":" not in image.rsplit("/", 1)[-1] or image.endswith(":latest")):
            raise ValueError("name a fixed tag or digest, or a restarted pod may run another version")
        return image


def ray_service(values: dict[str, Any], options: ManifestOptions) -> dict[str, Any]:
    """The manifest of a checked Serve config (`read_config_file`); `ConfigError` for what can't run in pods."""
    applications = [
        Application(app["name"], _validated(app)) for app in values["applications"] if app["import_path"] in BUILDERS
    ]
    drain_s = _drain_s(applications)
    claim = {"persistentVolumeClaim": {"claimName": options.cache_claim}} if options.cache_claim else {"emptyDir": {}}
    values_by_name = {
        **options.model_dump(),
        "ray_version": version("ray"),
        "port": _port(values),
        "drain_s": drain_s,
        "grace_period_s": drain_s + _STOP_MARGIN_S,
        "cache_volume": {"name": "cache", **claim},
    }
    groups = worker_groups(applications, options.cpus_per_machine, options.gpus_per_machine)
    for group in (_NO_GPUS, *groups):
        memory_gib = group.num_cpus * options.memory_gib_per_cpu + group.num_gpus * options.memory_gib_per_gpu
        sizes = {**asdict(group), "memory_gib": memory_gib}
        values_by_name |= {f"{group.name}_{name}": size for name, size in sizes.items()}
    in_json = {name: json.dumps(value, ensure_ascii=False) for name, value in values_by_name.items()}  # YAML as well
    manifest: dict[str, Any] = yaml.safe_load(_TEMPLATE.substitute(in_json))
    manifest["spec"]["serveConfigV2"] = dump_yaml(_spread(values))
    cluster = manifest["spec"]["rayClusterConfig"]
    cluster["workerGroupSpecs"] = [spec for spec in cluster["workerGroupSpecs"] if spec["maxReplicas"]]
    # All containers have this one list, by a reference in the template.
    cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["env"] += _environment(options)
    return manifest


def _environment(options: ManifestOptions) -> list[dict[str, Any]]:
    """Ray Serve's settings, and secrets by reference."""
    secrets = [{"name": options.secret, "key": key, "optional": True} for key in options.secret_env]
    settings = SERVE_SETTINGS | (HAPROXY_SETTINGS | {HAPROXY_BINARY: _LAUNCHER} if options.haproxy else {})
    return [
        *({"name": name, "value": value} for name, value in settings.items()),
        *({"name": secret["key"], "valueFrom": {"secretKeyRef": secret}} for secret in secrets),
    ]


def _validated(app: dict[str, Any]) -> ApplicationConfig:
    return BUILDERS[app["import_path"]].model_validate(app.get("args") or {})


def _port(values: dict[str, Any]) -> int:
    """The HTTP port, which must be open to other pods: probes and clients come from outside the container."""
    http = values.get("http_options") or {}
    if http.get("host") != "0.0.0.0":
        raise ConfigError(
            f"http_options.host is '{http.get('host', '127.0.0.1')}', where no other pod can reach it: set 0.0.0.0"
        )
    if values.get("proxy_location", "EveryNode") != "EveryNode":
        raise ConfigError("proxy_location must be EveryNode: the head's pod takes no requests")
    return int(http.get("port", _DEFAULT_PORT))


def _spread(values: dict[str, Any]) -> dict[str, Any]:
    """The config with ingress replicas kept apart, which Serve's packing of replicas would put together."""
    return {**values, "applications": [_spread_application(app) for app in values["applications"]]}


def _spread_application(app: dict[str, Any]) -> dict[str, Any]:
    config = _validated(app) if app["import_path"] in BUILDERS else None
    if not isinstance(config, IngressConfig) or config.num_replicas == 1:
        return app
    limit = {"max_replicas_per_node": ingress_per_machine(config)}
    deployments = [{**limit, **deployment} for deployment in app.get("deployments") or []]
    return {**app, "deployments": [{"name": item.pop("name"), **item} for item in deployments]}


def _drain_s(applications: list[Application]) -> int:
    """How long a pod that is to go may still answer: as long as the longest request, or a model's own drain."""
    waits = [
        app.config.request_timeout_s if isinstance(app.config, IngressConfig) else app.config.drain_timeout_s
        for app in applications
        if isinstance(app.config, IngressConfig | ModelConfig)
    ]
    return ceil(max(waits, default=0.0))


class _Dumper(yaml.SafeDumper):
    """Several lines as a block, no anchors: a person reads this, and a diff compares it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, indentless=False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def dump_yaml(values: Any) -> str:
    """YAML in the order of `values`; the same values always make the same text."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
    return text

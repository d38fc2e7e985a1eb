"""`serve-app manifest`: a RayService that KubeRay's own schema takes, from any config, and refusals with a fix."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from serve_app.cli import app
from serve_app.cli.up import DEMO_CONFIG
from serve_app.config.file import read_config_file
from serve_app.errors import ConfigError
from serve_app.kubernetes.manifest import ManifestOptions, dump_yaml, ray_service
from tests.kubernetes_schema import mistakes, ray_service_schema

ROOT = Path(__file__).parent.parent.parent
CONFIG = ROOT / "serve_config.yaml"


@pytest.fixture
def made() -> dict[str, Any]:
    return ray_service(read_config_file(CONFIG), ManifestOptions())


def groups_of(made: dict[str, Any]) -> dict[str, Any]:
    return {group["groupName"]: group for group in made["spec"]["rayClusterConfig"]["workerGroupSpecs"]}


def container_of(group: dict[str, Any]) -> dict[str, Any]:
    (container,) = group["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def all_groups(made: dict[str, Any]) -> list[dict[str, Any]]:
    return [made["spec"]["rayClusterConfig"]["headGroupSpec"], *groups_of(made).values()]


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["manifest", *arguments])


def open_demo() -> dict[str, Any]:
    """The demo's config as a cluster needs it."""
    values = read_config_file(DEMO_CONFIG)
    return {**values, "proxy_location": "EveryNode", "http_options": {"host": "0.0.0.0", "port": 8000}}


ALL_OPTIONS = ManifestOptions(
    name="images", namespace="ai", image="registry.example/a@sha256:00", secret="s", secret_env=("A", "B"),
    redis_address="10.0.0.1:6379", redis_secret="r", cpus_per_machine=16, gpus_per_machine=8,
    gpu_node_selector={"gpu": "h100"}, cache_claim="models",
)  # fmt: skip


@pytest.mark.parametrize("options", [ManifestOptions(), ALL_OPTIONS], ids=["defaults", "all options"])
@pytest.mark.parametrize("values", [read_config_file(CONFIG), open_demo()], ids=["production", "demo"])
def test_kuberays_schema_takes_it(values: dict[str, Any], options: ManifestOptions) -> None:
    made = yaml.safe_load(dump_yaml(ray_service(values, options)))
    assert mistakes(made, ray_service_schema()) == []


def _worker(made: dict[str, Any]) -> dict[str, Any]:
    return container_of(groups_of(made)["gpu"])


BREAKS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown field": (lambda m: m["spec"].update(serveConfig="x"), "spec: .*'serveConfig' was unexpected"),
    "misspelt in a pod": (lambda m: _worker(m).update(readynessProbe={}), "containers.0: .*'readynessProbe'"),
    "wrong type": (lambda m: _worker(m)["ports"][0].update(containerPort="80"), "containerPort: '80' is not of type"),
    "no quantity": (lambda m: _worker(m)["resources"]["limits"].update(memory="lots"), "memory: 'lots' does not"),
    "missing": (lambda m: groups_of(m)["gpu"].pop("groupName"), "'groupName' is a required property"),
    "no such value": (
        lambda m: m["spec"]["rayClusterConfig"].update(authOptions={"mode": "open"}), "mode: 'open' is not one of",
    ),
    "twice": (lambda m: _worker(m)["env"].append({"name": "HOME"}), "env: .'HOME'. stands in the list twice"),
}  # fmt: skip


@pytest.mark.parametrize("breakage", BREAKS)
def test_kuberays_schema_refuses_a_broken_one(made: dict[str, Any], breakage: str) -> None:
    break_it, sentence = BREAKS[breakage]
    broken = yaml.safe_load(dump_yaml(made))  # nothing in it is shared any more
    break_it(broken)
    (found,) = mistakes(broken, ray_service_schema())
    assert re.search(sentence, found)


def test_ray_serve_takes_the_config_in_it(made: dict[str, Any]) -> None:
    from ray.serve.schema import ServeDeploySchema

    values = yaml.safe_load(made["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(values)
    ingress = next(app for app in values["applications"] if app["name"] == "ingress")
    assert ingress["deployments"][0].pop("max_replicas_per_node") == 1  # two replicas never die together
    assert values == read_config_file(CONFIG)


def test_secrets_stand_there_by_name_only() -> None:
    made = ray_service(read_config_file(CONFIG), ALL_OPTIONS)
    for group in all_groups(made):
        env = {item["name"]: item for item in container_of(group)["env"]}
        for key in ALL_OPTIONS.secret_env:
            reference = {"name": "s", "key": key, "optional": True}
            assert env[key] == {"name": key, "valueFrom": {"secretKeyRef": reference}}
    password = made["spec"]["rayClusterConfig"]["gcsFaultToleranceOptions"]["redisPassword"]
    assert password == {"valueFrom": {"secretKeyRef": {"name": "r", "key": "password"}}}


def test_no_pod_has_privileges_or_writes_to_its_image(made: dict[str, Any]) -> None:
    for group in all_groups(made):
        pod, container = group["template"]["spec"], container_of(group)
        assert pod["securityContext"]["runAsNonRoot"]
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_a_worker_drains_for_as_long_as_a_request_may_take(made: dict[str, Any]) -> None:
    for group in groups_of(made).values():
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > 300  # request_timeout_s of the ingress
        drain = container_of(group)["lifecycle"]["preStop"]["exec"]["command"][-1]
        assert "--deadline-remaining-seconds 300 " in drain


def test_the_options_arrive() -> None:
    made = ray_service(read_config_file(CONFIG), ALL_OPTIONS)
    assert made["metadata"] == {"name": "images", "namespace": "ai"}
    gpu = groups_of(made)["gpu"]
    assert gpu["template"]["spec"]["nodeSelector"] == {"gpu": "h100"}
    assert container_of(gpu)["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}} in gpu["template"]["spec"]["volumes"]
    assert {container_of(group)["image"] for group in all_groups(made)} == {"registry.example/a@sha256:00"}


@pytest.mark.parametrize(
    ("http", "proxies", "sentence"),
    [
        ({"host": "127.0.0.1"}, "EveryNode", "http_options.host is '127.0.0.1'.*set 0.0.0.0"),
        (None, "EveryNode", "http_options.host is '127.0.0.1'"),
        ({"host": "0.0.0.0"}, "HeadOnly", "proxy_location must be EveryNode"),
    ],
)
def test_a_config_that_no_pod_can_serve_is_refused(http: Any, proxies: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ray_service({**open_demo(), "http_options": http, "proxy_location": proxies}, ManifestOptions())


def test_the_help_tells_the_defaults_that_hold() -> None:
    commands: Any = typer.main.get_command(app)
    told = {}
    for parameter in commands.commands["manifest"].params:
        if found := re.search(r"Default: (\S+( and \S+)?)\.$", getattr(parameter, "help", None) or ""):
            told[parameter.name] = found[1]
    defaults = ManifestOptions().model_dump() | {"secret_env": "HF_TOKEN and SERVE_APP_API_KEYS"}
    assert told == {name: str(defaults[name]) for name in told}
    assert len(told) == 10


def test_the_command_prints_the_same_every_time() -> None:
    first, again = command(str(CONFIG)), command(str(CONFIG))
    assert first.exit_code == 0, first.stderr
    assert first.stdout == again.stdout
    assert mistakes(yaml.safe_load(first.stdout), ray_service_schema()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["no.yaml"], "no.yaml doesn't exist"),
        (["serve_config.yaml", "--name", "Serve_App"], "(it is 'Serve_App')"),
        (["serve_config.yaml", "--image", "serve-app:latest"], "--image: name a fixed tag or digest"),
        (["serve_config.yaml", "--image", "registry.example:5000/serve-app"], "--image: name a fixed tag or digest"),
        (["serve_config.yaml", "--gpu-node-selector", "h100"], "--gpu-node-selector is KEY=VALUE, and 'h100' isn't"),
        (["serve_config.yaml", "--gpus-per-machine", "1"], "'qwen2.5-32b' needs 2 GPUs in one machine"),
        (
            ["serve_config.yaml", "--gpus-per-machine", "0"],
            "--gpus-per-machine: Input should be greater than or equal to 1 (it is 0)",
        ),
    ],
)
def test_what_cannot_work_is_one_sentence(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    done = command(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1

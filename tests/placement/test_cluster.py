"""`cluster/`: each file against the schema, the tool or the code that it could drift from."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.cli.manifest import render
from serve_app.config.applications import IngressConfig, ModelConfig
from serve_app.config.file import read_config_file
from serve_app.config.serve_settings import SERVE_SETTINGS
from serve_app.errors import ServiceError
from serve_app.kubernetes.manifest import ManifestOptions
from serve_app.metrics.specs import METRICS
from tests.kubernetes_schema import mistakes, part, ray_service_schema

ROOT = Path(__file__).parent.parent.parent
CLUSTER = ROOT / "cluster"
CONFIG = ROOT / "serve_config.yaml"
README = (CLUSTER / "README.md").read_text()
BLOCKS = re.findall(r"```sh( tested)?\n(.*?)```", README, re.DOTALL)
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
ALERTS = yaml.safe_load((CLUSTER / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
ALERT_TESTS = yaml.safe_load((CLUSTER / "prometheus" / "alerts_test.yaml").read_text())["tests"]


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool isn't installed (Debian: apt-get install prometheus)")
    return found


def test_the_production_example_is_what_it_says() -> None:
    apps = read_config_file(CONFIG)["applications"]
    models = [ModelConfig.model_validate(a["args"]) for a in apps if a["import_path"] == "serve_app.app:build_model"]
    assert len([m for m in models if m.tasks == ("chat",)]) == 2
    assert len([m for m in models if "caption" in m.tasks]) == 2
    assert [m.tensor_parallel_size for m in models if m.num_ranks > 1] == [2]
    assert [m.num_gpus for m in models if m.num_gpus < 1] == [0.5]


def test_every_way_to_start_ray_has_the_same_settings() -> None:
    exported = dict(re.findall(r"^export (\w+)=(.*)$", (CLUSTER / "ray_env.sh").read_text(), re.MULTILINE))
    assert exported == {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", **SERVE_SETTINGS}
    starts = re.findall(r".*ray start.*", (CLUSTER / "ray_up.yaml").read_text())
    assert len(starts) == 2
    assert all("ray_env.sh && ~/serve_app/.venv/bin/ray start" in line for line in starts)
    told = (ROOT / "docs" / "operations.md").read_text()
    assert all(f"| `{name}` | `{value}` |" in told for name, value in SERVE_SETTINGS.items())


def test_the_manifest_is_that_of_the_config() -> None:
    committed = (CLUSTER / "rayservice.yaml").read_text()
    assert render(CONFIG, {}) == committed, "run: serve-app manifest serve_config.yaml > cluster/rayservice.yaml"
    assert mistakes(yaml.safe_load(committed), ray_service_schema()) == []


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_policies_are_what_kubernetes_takes(direction: str) -> None:
    schema = part(
        ray_service_schema(), "spec", "rayClusterConfig", "networkPolicy", "head", f"{direction}Rules", "[]"
    )
    rules = [rule for policy in documents("network_policy.yaml") for rule in policy["spec"].get(direction, [])]
    assert rules
    assert [mistakes(rule, schema) for rule in rules] == [[]] * len(rules)
    assert mistakes({"port": 8000}, schema) != []


def test_only_the_http_port_is_open_to_everyone() -> None:
    """A rule without `from` is open to all; each port a policy names is one that the pods name too."""
    policies = documents("network_policy.yaml")
    rules = [(policy["spec"]["podSelector"], rule) for policy in policies for rule in policy["spec"]["ingress"]]
    ((selector, open_rule),) = [(selector, rule) for selector, rule in rules if "from" not in rule]
    assert [port["port"] for port in open_rule["ports"]] == ["serve"]
    assert selector["matchLabels"]["ray.io/node-type"] == "worker"
    cluster = yaml.safe_load((CLUSTER / "rayservice.yaml").read_text())["spec"]["rayClusterConfig"]
    pods = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    pods.append(documents("redis.yaml")[1]["spec"]["template"])
    named = {port["name"] for pod in pods for port in pod["spec"]["containers"][0]["ports"]}
    assert {port["port"] for _, rule in rules for port in rule.get("ports", [])} <= named
    labels = {f"{key}={value}" for pod in pods for key, value in pod["metadata"]["labels"].items()}
    for policy in policies:
        wanted = policy["spec"]["podSelector"]["matchLabels"].items()
        assert {f"{key}={value}" for key, value in wanted if not key.startswith("ray.io/")} <= labels


def test_redis_is_what_kubernetes_takes_and_what_the_head_asks_for() -> None:
    service, stateful_set = documents("redis.yaml")
    template = stateful_set["spec"]["template"]
    schema = part(ray_service_schema(), "spec", "rayClusterConfig", "headGroupSpec", "template")
    assert mistakes(template, schema) == []
    assert (
        stateful_set["spec"]["selector"]["matchLabels"]
        == service["spec"]["selector"]
        == template["metadata"]["labels"]
    )
    options = ManifestOptions()
    assert f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}" == options.redis_address
    (env,) = template["spec"]["containers"][0]["env"]
    assert env["valueFrom"]["secretKeyRef"] == {"name": options.redis_secret, "key": "password"}


def test_every_object_is_in_the_namespace_that_is_made() -> None:
    (namespace,) = documents("namespace.yaml")
    for name in ("rayservice.yaml", "redis.yaml", "network_policy.yaml", "ingress.yaml", "prometheus/monitors.yaml"):
        for document in documents(name):
            assert document["metadata"]["namespace"] == namespace["metadata"]["name"], name


def test_clients_come_to_v1_alone_with_the_ingresss_own_limits() -> None:
    (ingress,) = documents("ingress.yaml")
    (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
    assert path["path"] == "/v1"
    assert path["backend"]["service"]["name"] == f"{ManifestOptions().name}-serve-svc"  # KubeRay's name for it
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == f"{IngressConfig().max_body_bytes // 10**6}m"
    timeout = str(read_config_file(CONFIG)["http_options"]["request_timeout_s"])
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == timeout


def test_the_image_is_made_of_what_is_here() -> None:
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().split()
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source.removeprefix("./"), line[1:]) for line in ignored if line.startswith("!")), source
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (extra,) = re.findall(r"^ARG EXTRA=(.*)$", DOCKERFILE, re.MULTILINE)
    (told,) = re.findall(r"^# EXTRA is .*: (.*), or empty", DOCKERFILE, re.MULTILINE)
    assert {extra, *re.findall(r"vllm[\w-]*", told)} <= extras.keys()


def test_the_image_is_the_one_the_pods_expect() -> None:
    cluster = yaml.safe_load((CLUSTER / "rayservice.yaml").read_text())["spec"]["rayClusterConfig"]
    pod = cluster["headGroupSpec"]["template"]["spec"]
    user, group = (pod["securityContext"][key] for key in ("runAsUser", "runAsGroup"))
    (home,) = (item["value"] for item in pod["containers"][0]["env"] if item["name"] == "HOME")
    assert f"USER {user}:{group}" in DOCKERFILE
    assert f"--uid {user} --create-home --home-dir {home} " in DOCKERFILE
    assert f"-t {ManifestOptions().image} " in DOCKERFILE
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(.*)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.1[1-3]\.\d+-slim-\w+", base)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${PYTHON_IMAGE}"}


def test_every_alert_asks_for_metrics_that_exist() -> None:
    labels_of = {spec.name: {"replica", *spec.labels} for spec in METRICS}
    series = [str(rule["expr"]) for rule in ALERTS]
    series += [item["series"] for test in ALERT_TESTS for item in test["input_series"]]
    for text in series:
        used = re.findall(r"(serve_app_\w+?)(?:_bucket)?(?:\{(.*?)\})?(?=[\[\s)]|$)", text)
        assert used, text
        for name, matchers in used:
            assert set(re.findall(r"(\w+)=", matchers)) <= labels_of[name] | {"le"}, text


def test_the_error_alert_counts_the_services_own_failures() -> None:
    (rule,) = (rule for rule in ALERTS if rule["alert"] == "ServeAppErrors")
    (outcomes,) = re.findall(r'outcome=~"(.*?)"', rule["expr"])
    told_on_purpose = {"shutting_down"}  # whoever stops a service knows it
    assert outcomes.split("|") == sorted({error.code for error in ServiceError.__subclasses__()} - told_on_purpose)


@pytest.mark.parametrize("alert", [rule["alert"] for rule in ALERTS])
def test_every_alert_is_seen_to_fire_and_not_to(alert: str) -> None:
    expected = [
        bool(case["exp_alerts"])
        for test in ALERT_TESTS
        for case in test["alert_rule_test"]
        if case["alertname"] == alert
    ]
    assert set(expected) == {True, False}


def test_promtool_fires_every_alert(promtool: str) -> None:
    done = subprocess.run(
        [promtool, "test", "rules", "alerts_test.yaml"],
        cwd=CLUSTER / "prometheus", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_notices_alerts_that_never_fire(promtool: str, tmp_path: Path) -> None:
    rules = yaml.safe_load((CLUSTER / "prometheus" / "alerts.yaml").read_text())
    for rule in rules["groups"][0]["rules"]:
        rule["expr"] = "vector(1) > 2"
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(rules))
    shutil.copy(CLUSTER / "prometheus" / "alerts_test.yaml", tmp_path)
    done = subprocess.run(
        [promtool, "test", "rules", "alerts_test.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert [rule["alert"] for rule in ALERTS if f"alertname: {rule['alert']}," not in told] == []


def test_the_readme_numbers_its_commands_and_says_of_each_whether_it_was_tried() -> None:
    for section in README.split("\n## ")[1:]:
        numbers = [int(number) for number in re.findall(r"^\*\*(\d+)\. ", section, re.MULTILINE)]
        assert numbers == list(range(1, len(numbers) + 1))
    said = re.findall(
        r"\*(Tested|Not tested)\.\*(?:(?!\*Tested|\*Not tested).)*?```sh( tested)?\n", README, re.DOTALL
    )
    assert [bool(mark) for _, mark in said] == [word == "Tested" for word, _ in said]
    assert len(said) == len(BLOCKS)


def test_the_readme_names_every_file() -> None:
    for path in CLUSTER.iterdir():
        assert path.name in README or path.name in ("README.md", "Dockerfile.dockerignore")
    for name in re.findall(r"cluster/([\w/.]+\.yaml|Dockerfile)", README):
        assert (CLUSTER / name).exists(), name


@pytest.mark.parametrize("block", [code for tested, code in BLOCKS if tested])
def test_the_readmes_tested_commands_print_what_stands_there(
    block: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A comment shows the answer; «…» stands for anything. A block without one prints nothing."""
    if "promtool" in block:
        request.getfixturevalue("promtool")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euc", block.replace("/tmp/", f"{tmp_path}/")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, "PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    expected = re.findall(r"^# (.*)$", block, re.MULTILINE)
    assert bool(said) == bool(expected), said
    for answer in expected:
        for piece in filter(None, map(str.strip, answer.split("…"))):
            assert piece in said, (piece, said)


def test_the_rules_become_the_operators_by_the_readmes_command() -> None:
    (block,) = (code for _, code in BLOCKS if "PrometheusRule" in code)
    making = block[block.index("{ printf") :].split("| kubectl")[0]
    made = subprocess.run(["bash", "-euc", making], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    rule = yaml.safe_load(made.stdout)
    assert (rule["kind"], rule["spec"]["groups"][0]["rules"]) == ("PrometheusRule", ALERTS)

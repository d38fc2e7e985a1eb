"""`serve-app plan` on a file as a whole: whether requests reach its models in time, and what their starts refuse."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config.file import read_config_file
from serve_app.engines.vllm import args as vllm_args
from serve_app.errors import ConfigError
from serve_app.plan.nodes import read_nodes
from serve_app.plan.verdict import Plan, make_plan
from tests.plan.test_plan import said

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL: dict[str, Any] = {
    "name": "m",
    "import_path": "serve_app.app:build_model",
    "route_prefix": None,
    "args": {"source": "none", "engine": "scripted", "autoscaling": {"min_replicas": 2, "max_replicas": 2}},
}
INGRESS: dict[str, Any] = {
    "name": "ingress",
    "import_path": "serve_app.app:build_ingress",
    "route_prefix": "/",
    "deployments": [{"name": "Ingress", "user_config": {"models": ["m"]}}],
}
METRICS: dict[str, Any] = {
    "name": "metrics", "import_path": "serve_app.app:build_metrics", "route_prefix": "/metrics",
}  # fmt: skip


def model(**args: Any) -> dict[str, Any]:
    return {**MODEL, "args": MODEL["args"] | args}


def planned(folder: Path, *applications: dict[str, Any], **file: Any) -> Plan:
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(copy.deepcopy({"applications": list(applications), **file})))
    return make_plan(read_config_file(path), read_nodes(["CPU=16,GPU=4"], None))


def severities(plan: Plan) -> set[str]:
    return {finding.severity for finding in plan.findings}


def test_a_whole_file_needs_no_word(tmp_path: Path) -> None:
    plan = planned(tmp_path, MODEL, INGRESS, METRICS, http_options={"request_timeout_s": 301})
    assert plan.findings == ()
    assert said(plan).strip().endswith("It works.")


@pytest.mark.parametrize("prefix", [None, "absent"])
def test_models_that_nothing_reaches(tmp_path: Path, prefix: str | None) -> None:
    ingress = [{**INGRESS, "route_prefix": None}] if prefix is None else []
    plan = planned(tmp_path, MODEL, *ingress, METRICS)
    assert not plan.works
    assert "no request reaches any model" in said(plan)


def test_a_direct_lane_is_an_address(tmp_path: Path) -> None:
    lane = {**MODEL, "name": "own", "route_prefix": "/models/own"}
    assert planned(tmp_path, lane, METRICS).findings == ()
    plan = planned(tmp_path, MODEL, lane, INGRESS, METRICS)
    assert severities(plan) == {"note"}
    assert "no ingress names model 'own': requests reach it at /models/own alone" in said(plan)
    unnamed = planned(tmp_path, MODEL, {**MODEL, "name": "own"}, INGRESS, METRICS)
    assert "'own': it takes its resources, and no request reaches it" in said(unnamed)
    assert "otherwise than written" in said(unnamed)


def test_a_prefix_that_is_left_out_is_ray_serves_own(tmp_path: Path) -> None:
    bare = {key: value for key, value in MODEL.items() if key != "route_prefix"}
    with pytest.raises(ConfigError, match="route_prefix '/' is taken by an application above it"):
        planned(tmp_path, bare, INGRESS, METRICS)
    assert planned(tmp_path, bare, METRICS).works


def test_ray_serves_own_time_out_below_the_applications(tmp_path: Path) -> None:
    lane = {**model(http={"request_timeout_s": 900}), "name": "own", "route_prefix": "/models/own"}
    plan = planned(tmp_path, MODEL, lane, INGRESS, METRICS, http_options={"request_timeout_s": 300})
    assert "ends every request after 300 s, and the applications would take longer: 'own' 900 s" in said(plan)
    assert "set it above 900" in said(plan)
    for none in (None, 0, -1):
        plan = planned(tmp_path, MODEL, INGRESS, METRICS, http_options={"request_timeout_s": none})
        assert plan.findings == ()


def test_a_sidecar_that_isnt_there(tmp_path: Path) -> None:
    plan = planned(tmp_path, MODEL, INGRESS)
    assert "'m', 'ingress' report to the metrics application 'metrics', which isn't in the file" in said(plan)
    silent = {"metrics_application": None}
    assert planned(tmp_path, model(**silent), {**INGRESS, "args": silent}).findings == ()
    wrong = planned(tmp_path, model(metrics_application="ingress"), INGRESS, METRICS)
    assert "'m' report to the metrics application 'ingress'" in said(wrong)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"source": "a/model", "engine": "auto", "trust_remote_code": True}, "set revision to the commit"),
        ({"source": "a/model", "engine": "vllm", "trust_remote_code": True, "revision": "main"}, "40 hex digits"),
        ({"source": "s3://bucket/model", "engine": "auto", "revision": COMMIT}, "is no hub id and has no revisions"),
        ({"source": "no hub id", "engine": "auto"}, "correct the path or name a hub id"),
        (
            {"source": "a/model", "engine": "vllm", "tensor_parallel_size": 2, "engine_args": {"nnodes": 2}},
            "leave out 'nnodes' where a model has several ranks",
        ),
    ],
)  # fmt: skip
def test_what_the_start_would_refuse(tmp_path: Path, args: dict[str, Any], sentence: str) -> None:
    plan = planned(tmp_path, model(**args), INGRESS, METRICS)
    assert not plan.works
    assert sentence in said(plan)
    assert all(finding.fix and finding.what for finding in plan.findings)


def test_what_the_start_takes(tmp_path: Path) -> None:
    for args in (
        {"source": "a/model", "trust_remote_code": True, "revision": COMMIT},
        {"source": "/on/the/nodes/alone", "trust_remote_code": True},
    ):
        assert planned(tmp_path, model(engine="transformers", **args), INGRESS, METRICS).works


@pytest.mark.parametrize(
    ("engine_args", "sentence"),
    [
        ({"max_modle_len": 8192}, "vLLM has no 'max_modle_len': did you mean 'max_model_len'"),
        ({"tool_call_parser": "hermse"}, "tool_call_parser 'hermse' is unknown: did you mean 'hermes'?"),
        ({"model": "x"}, "leave out 'model' and set the model's own 'source'"),
    ],
)
def test_arguments_that_vllm_doesnt_have(tmp_path: Path, engine_args: dict[str, Any], sentence: str) -> None:
    args = {"source": "a/model", "engine": "vllm", "engine_args": engine_args}
    plan = planned(tmp_path, model(**args), INGRESS, METRICS)
    if not vllm_args.is_installed():
        assert "they aren't checked: vLLM isn't installed here" in said(plan)
        return
    assert not plan.works
    assert any(sentence in f"{finding.what}: {finding.fix}" for finding in plan.findings)


@pytest.mark.parametrize(
    "key", ["graceful_shutdown_timeout_s", "health_check_period_s", "num_replicas", "max_queued_requests"]
)
def test_what_ray_serves_overrides_take_away(tmp_path: Path, key: str) -> None:
    ingress = {**INGRESS, "deployments": [{**INGRESS["deployments"][0], key: 1}]}
    plan = planned(tmp_path, MODEL, ingress, METRICS)
    (finding,) = plan.findings
    assert (finding.severity, finding.place) == ("warning", f"applications[1] 'ingress': deployments[0].{key}")

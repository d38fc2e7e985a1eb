"""A replica's start: what it tells, the request of its own that it answers, and how a failure is worded."""

import re
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from serve_app.checkpoints.load_progress import LoadProgress
from serve_app.config.applications import ModelConfig
from serve_app.engines.scripted.engine import ScriptedEngine
from serve_app.errors import ConfigError, EngineFailed
from serve_app.messages import GenerationRequest, Message, Sampling, Text
from serve_app.metrics.registry import Metrics
from serve_app.replica.replica import Replica, start_replica


def scripted(**settings: Any) -> ModelConfig:
    return ModelConfig.model_validate({"source": "none", "engine": "scripted", **settings})


async def started(config: ModelConfig) -> tuple[ScriptedEngine, list[str], str]:
    """The engine after the start, the steps that were told, and the metrics."""
    engine, steps, registry = ScriptedEngine(config), list[str](), CollectorRegistry()
    await Replica("m", config, engine, Metrics(registry, models=["m"])).start(steps.append)
    return engine, steps, generate_latest(registry).decode()


@pytest.mark.parametrize(("takes_images", "num_tokens"), [(True, 4), (False, 2)])
async def test_a_warm_up_answers_and_counts_nowhere(takes_images: bool, num_tokens: int) -> None:
    config = scripted(warm_up=True, engine_args={"takes_images": takes_images})
    engine, steps, metrics = await started(config)
    assert engine.num_generated == num_tokens
    assert steps[-1] == "warming up"
    assert not re.search(r'_total\{.*model="m".*\} [1-9]', metrics)


@pytest.mark.parametrize("settings", [{}, {"warm_up": False}])
async def test_a_script_warms_up_only_where_asked(settings: dict[str, Any]) -> None:
    engine, steps, _ = await started(scripted(**settings))
    assert engine.num_generated == 0
    assert "warming up" not in steps


async def test_a_model_that_cannot_answer_never_becomes_ready() -> None:
    config = scripted(warm_up=True, engine_args={"context_length": 3})
    engine = ScriptedEngine(config)
    replica = Replica("m", config, engine, Metrics(CollectorRegistry(), models=["m"]))
    with pytest.raises(
        ConfigError, match=r"warm-up request failed .* 3 tokens\..* 19 tokens.*, or set warm_up: false"
    ):
        await replica.start()
    with pytest.raises(EngineFailed):
        await engine.check_health()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (scripted(engine_args={"start_error": "line one\nline two"}), "line one line two"),
        (scripted(engine_args={"tokns": 1}), "engine_args: unknown field 'tokns': did you mean 'tokens'"),
        (ModelConfig(source="/no/such"), "source '/no/such': there is no folder"),
    ],
)
async def test_a_failed_start_names_the_model_in_one_line(config: ModelConfig, sentence: str) -> None:
    progress = LoadProgress("m")
    with pytest.raises(ConfigError, match=f"^model 'm': {sentence}") as raised:
        await start_replica("m", config, Metrics(CollectorRegistry(), models=["m"]), progress)
    assert "\n" not in str(raised.value)
    assert progress.step is None


@pytest.mark.parametrize("text", ["!nonsense nothing", "!nonsense unfinished"])
async def test_an_engine_that_returns_in_mid_answer_has_failed(text: str) -> None:
    config = scripted()
    engine = ScriptedEngine(config)
    replica = Replica("m", config, engine, Metrics(CollectorRegistry(), models=["m"]))
    await replica.start()
    request = GenerationRequest("id", "m", (Message("user", (Text(text),)),), Sampling(), timeout_s=10)
    with pytest.raises(EngineFailed, match="in the middle of its answer"):
        await replica.answer(request)


async def test_what_an_engines_libraries_raise_is_told_as_the_models_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = scripted()
    replica = Replica("m", config, ScriptedEngine(config), Metrics(CollectorRegistry(), models=["m"]))
    await replica.start()
    request = GenerationRequest("r1", "m", (Message("user", (Text("!nonsense foreign"),)),), Sampling(), timeout_s=10)
    with pytest.raises(EngineFailed, match=r"model 'm' failed .* send it again; the replica's log says why"):
        await replica.answer(request)
    assert "model m: request r1 failed" in caplog.text
    assert "Traceback" in caplog.text

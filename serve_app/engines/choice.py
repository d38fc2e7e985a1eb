"""Which engine a model runs on. An engine is a folder, and a row here."""

from serve_app.checkpoints import source
from serve_app.checkpoints.load_progress import Report, to_nobody
from serve_app.config.applications import ModelConfig
from serve_app.engines import Engine
from serve_app.engines.vllm.args import check_engine_args, is_installed, serves
from serve_app.engines.vllm.ranks import check_ranks


def create_engine(config: ModelConfig, report: Report = to_nobody) -> Engine:
    """The configured engine, not started. Its library is imported here and not before. Raises `ConfigError`."""
    if config.engine == "scripted":
        from serve_app.engines.scripted.engine import ScriptedEngine

        return ScriptedEngine(config)
    source.check(config)  # before the seconds that an engine's import takes: a failed start is tried again
    if config.needs_vllm or (config.engine == "auto" and _vllm_is_wanted(config, report)):
        check_ranks(config)
        check_engine_args(config)
        from serve_app.engines.vllm.engine import VllmEngine

        return VllmEngine(config)
    from serve_app.engines.transformers.engine import TransformersEngine

    return TransformersEngine(config)


def _vllm_is_wanted(config: ModelConfig, report: Report) -> bool:
    """What `auto` means where either engine may do: vLLM where it is installed and knows the architecture."""
    return is_installed() and serves(config, source.resolve(config, report))

"""Which engine runs a model. An engine is a folder beside this file, and a row here.

Knows when an engine is chosen and how it is made, and nothing of what it does. An engine's class is imported only
once it is chosen, because its library takes seconds to import and may not be installed.
"""

import pkgutil
from collections.abc import Callable
from typing import NamedTuple

from serve_app.checkpoints import source
from serve_app.checkpoints.load_progress import Report, to_nobody
from serve_app.config.applications import ModelConfig
from serve_app.engines import Engine
from serve_app.engines.vllm import args as vllm_args


class EngineRow(NamedTuple):
    """How `auto` chooses an engine, and how the engine is made."""

    path: str  # of its class, `module:name`; the class takes the model's config
    suits: Callable[[ModelConfig, Report], bool]  # whether `engine: auto` takes it for this model; may download
    check: Callable[[ModelConfig], None]  # raises `ConfigError`, within milliseconds, for what can't work


# By the name that `engine` has in a model's config. `auto` takes the first row that suits.
ENGINES = {
    "scripted": EngineRow(
        "serve_app.engines.scripted.engine:ScriptedEngine", lambda config, report: False, lambda config: None
    ),
    "vllm": EngineRow("serve_app.engines.vllm.engine:VllmEngine", vllm_args.suits, vllm_args.check),
    "transformers": EngineRow(
        "serve_app.engines.transformers.engine:TransformersEngine", lambda config, report: True, source.check
    ),
}


def create_engine(config: ModelConfig, report: Report = to_nobody) -> Engine:
    """The engine of the config, not started. Raises `ConfigError`. Blocks: call it in a thread."""
    if config.engine == "auto":
        row = next(row for row in ENGINES.values() if row.suits(config, report))
    else:
        row = ENGINES[config.engine]
    row.check(config)
    engine: Engine = pkgutil.resolve_name(row.path)(config)
    return engine

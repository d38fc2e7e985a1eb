"""What a replica's start would refuse, as far as it can be told without the replica: its source, vLLM's arguments."""

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout

from serve_app.checkpoints import source
from serve_app.config.applications import ModelConfig
from serve_app.engines.vllm import args as vllm_args
from serve_app.engines.vllm import ranks as vllm_ranks
from serve_app.errors import ConfigError
from serve_app.plan.finding import Finding, error, note


def start_findings(model: ModelConfig, place: str) -> Iterator[Finding]:
    """What the start's own checks say of the config; those that need the model's files are left out."""
    if model.engine == "scripted":
        return
    if not source.is_absent_folder(model.source):  # that may lie on the nodes
        yield from _refusal(source.check_settings, model, f"{place}.source")
    if not model.needs_vllm:
        return
    yield from _refusal(vllm_ranks.check_ranks, model, f"{place}.engine_args")
    if model.engine_args:
        yield from _vllm_arguments(model, f"{place}.engine_args")


def _vllm_arguments(model: ModelConfig, place: str) -> Iterator[Finding]:
    if not vllm_args.is_installed():
        yield note(place, "they aren't checked: vLLM isn't installed here", "plan where it is")
        return
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # what its import says is no finding
            findings = list(_refusal(vllm_args.check_engine_args, model, place))
    except ImportError as exc:
        yield note(place, f"they aren't checked: vLLM can't be imported here ({exc})", "plan where it runs")
        return
    yield from findings


def _refusal(check: Callable[[ModelConfig], None], model: ModelConfig, place: str) -> Iterator[Finding]:
    try:
        check(model)
    except ConfigError as exc:
        what, _, fix = str(exc).removeprefix("engine_args: ").rpartition(": ")
        yield error(place, what or "no replica could start", fix)

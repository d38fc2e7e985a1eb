"""Models whose code comes with the checkpoint and whose prompts it makes itself: one file for each convention."""

from typing import Any

from serve_app.engines.transformers.remote.cogvlm import CogVlmModel
from serve_app.engines.transformers.remote.minicpm import MiniCpmModel
from serve_app.engines.transformers.remote.model import RemoteModel
from serve_app.engines.transformers.remote.xgenmm import XGenMmModel

_CLASSES: dict[str, type[RemoteModel]] = {
    "MiniCPMV": MiniCpmModel,
    "MiniCPMO": MiniCpmModel,
    "CogVLMForCausalLM": CogVlmModel,
    "XGenMMModelForConditionalGeneration": XGenMmModel,
}


def remote_class(config: Any) -> type[RemoteModel] | None:
    """By the classes that a checkpoint's `config.json` names; None for models with transformers' own conventions."""
    auto_map = getattr(config, "auto_map", None) or {}
    names = {str(place).rpartition(".")[2] for place in auto_map.values()}
    return next((remote for name, remote in _CLASSES.items() if name in names), None)

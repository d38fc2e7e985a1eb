"""Which way of its own a checkpoint's remote code is asked in, told by the class that its `config.json` names."""

from typing import Any

from serve_app.engines.transformers.cogvlm_model import CogVlmModel
from serve_app.engines.transformers.minicpm_model import MiniCpmModel
from serve_app.engines.transformers.remote_model import RemoteModel
from serve_app.engines.transformers.xgenmm_model import XGenMmModel

_WAYS: dict[str, type[RemoteModel]] = {
    "MiniCPMV": MiniCpmModel,
    "MiniCPMO": MiniCpmModel,
    "CogVLMForCausalLM": CogVlmModel,
    "XGenMMModelForConditionalGeneration": XGenMmModel,
}


def way_of(config: Any) -> type[RemoteModel] | None:
    """None for models with transformers' own conventions. `config` is the checkpoint's, as transformers reads it."""
    auto_map = getattr(config, "auto_map", None) or {}
    named = {str(place).rpartition(".")[2] for place in auto_map.values()}
    return next((way for name, way in _WAYS.items() if name in named), None)

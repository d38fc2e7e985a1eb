"""`quantization: int8` on the transformers engine: weights of one byte, through torchao, on CPU and GPU alike.

Every linear layer's weight is quantized, with a scale for each output channel; activations keep the model's dtype.
The output layer and the embeddings stay as they are: they are often one tensor, and errors in them cost the most.
"""

from typing import Any

import torch

from serve_app.config.applications import ModelConfig
from serve_app.errors import ConfigError


def check_quantization(config: ModelConfig) -> None:
    """Raise `ConfigError` for a quantization that this engine lacks, before anything is read."""
    if config.quantization not in (None, "int8"):
        raise ConfigError(
            f"quantization '{config.quantization}' is unknown to engine transformers: write int8, or set engine: vllm"
        )


def quantize(model: Any, config: ModelConfig) -> None:
    """Turn the model's linear weights into int8, in place. Raises `ConfigError`."""
    if getattr(model.config, "quantization_config", None):
        raise ConfigError(f"source '{config.source}' is quantized already: leave out quantization")
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as exc:
        raise ConfigError("quantization int8 needs torchao: pip install 'serve-app[int8]'") from exc
    output_layer = model.get_output_embeddings()
    quantize_(
        model,
        Int8WeightOnlyConfig(),
        filter_fn=lambda module, name: isinstance(module, torch.nn.Linear) and module is not output_layer,
    )

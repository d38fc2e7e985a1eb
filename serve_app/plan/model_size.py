"""How large a model is: weights, key-value cache per token, tokens per image. Read from its folder's headers.

A hub model counts where it lies in the hub's cache already: nothing is downloaded.
"""

import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.config.applications import ModelConfig

_NUM_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2}  # all else is one byte
_NUM_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_FLOATS = ("F64", "F32", "BF16", "F16")
_KEYS_AND_VALUES = re.compile(r"layers\.\d+\.self_attn\.[kv]_proj\.weight$")
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
_CACHED_LAYERS = ("full_attention", "sliding_attention", "attention")
_STEP_TOKENS = 8192  # that vLLM computes in one step, by default, on the largest GPUs
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What is known of a model's size; None is unknown, and `unknown` says why."""

    weight_bytes: int | None = None
    kv_bytes_per_token: int | None = None
    kv_bytes_per_context: int | None = None  # less than all its tokens' where layers look at a sliding window only
    image_tokens: int | None = None
    context_tokens: int | None = None
    unknown: str | None = None


def size_of(config: ModelConfig) -> ModelSize:
    """Blocks for the time to read a few headers."""
    if config.engine == "scripted":
        return ModelSize(unknown="scripted")
    folder = _folder(config)
    if folder is None:
        return ModelSize(unknown="not downloaded here")
    try:
        values = _json(folder / "config.json")
        tensors = [item for file in sorted(folder.glob("*.safetensors")) for item in _header(file).items()]
    except (OSError, ValueError, struct.error) as exc:
        return ModelSize(unknown=f"{folder} can't be read: {exc}")
    text = next((values[key] for key in _TEXT_CONFIGS if isinstance(values.get(key), dict)), values)
    num_dtype_bytes = _dtype_bytes(config, values, text, tensors)
    elements = _kv_elements(values, text, tensors)
    kv_bytes = 1 if "fp8" in str(config.engine_args.get("kv_cache_dtype")) else num_dtype_bytes
    positions = text.get("max_position_embeddings")
    context = min((n for n in (positions, _limit(config)) if n), default=None)
    per_token = elements * kv_bytes if elements else None
    return ModelSize(
        weight_bytes=_weight_bytes(config, values, tensors, num_dtype_bytes) if tensors else None,
        kv_bytes_per_token=per_token,
        kv_bytes_per_context=int(per_token * _kept_tokens(config, values, text, context))
        if per_token and context
        else None,
        image_tokens=_image_tokens(folder, values),
        context_tokens=context,
        unknown=None if elements and tensors else "its headers don't tell it",
    )


def _limit(config: ModelConfig) -> int | None:
    limit = config.engine_args.get("max_model_len")
    return limit if isinstance(limit, int) else config.max_context_tokens


def _folder(config: ModelConfig) -> Path | None:
    if config.source == "demo":
        from serve_app.demo import CHECKPOINT

        return CHECKPOINT
    if (Path(config.source).expanduser() / "config.json").is_file():
        return Path(config.source).expanduser()
    if "://" in config.source or config.source.startswith(("/", ".", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(config.source, "config.json", revision=config.revision)
    except HFValidationError:
        return None
    return Path(path).parent if isinstance(path, str) else None


def _json(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _header(file: Path) -> dict[str, Any]:
    """A safetensors file's tensors: https://huggingface.co/docs/safetensors (8 bytes of length, then JSON)."""
    with file.open("rb") as head:
        (length,) = struct.unpack("<Q", head.read(8))
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"{file.name} is no safetensors file")
        header: dict[str, Any] = json.loads(head.read(length))
    header.pop("__metadata__", None)
    return header


def _dtype_bytes(
    config: ModelConfig, values: dict[str, Any], text: dict[str, Any], tensors: list[tuple[str, Any]]
) -> int:
    own = next((v for v in (c.get(k) for c in (values, text) for k in ("dtype", "torch_dtype")) if v), None)
    name = own if config.dtype == "auto" else config.dtype
    if name is None:
        return max((_NUM_BYTES.get(t["dtype"], 1) for _, t in tensors if t["dtype"] in _FLOATS), default=2)
    return _NUM_DTYPE_BYTES.get(str(name).removeprefix("torch."), 2)


def _weight_bytes(
    config: ModelConfig, values: dict[str, Any], tensors: list[tuple[str, Any]], num_dtype_bytes: int
) -> int:
    """Floats in the model's dtype, matrices in one byte where they are quantized to eight bits at the start."""
    is_quantized_here = config.quantization in ("int8", "fp8") and "quantization_config" not in values
    total = 0
    for _, tensor in tensors:
        in_file = _NUM_BYTES.get(tensor["dtype"], 1)
        num_bytes = num_dtype_bytes if tensor["dtype"] in _FLOATS else in_file
        if is_quantized_here and len(tensor["shape"]) == 2:
            num_bytes = 1
        total += math.prod(tensor["shape"]) * num_bytes
    return total


def _kv_elements(values: dict[str, Any], text: dict[str, Any], tensors: list[tuple[str, Any]]) -> int | None:
    """Numbers cached for each token: 2 x layers x key-value heads x head size, or what the weights' shapes say."""
    if values.get("is_encoder_decoder") or text.get("is_encoder_decoder"):
        return None
    kinds = text.get("layer_types") or []
    layers = _first(text, "num_hidden_layers", "n_layer", "num_layers")
    if kinds:
        layers = sum(kind in _CACHED_LAYERS for kind in kinds)
    if layers and text.get("kv_lora_rank"):  # multi-head latent attention caches one compressed vector
        return int(layers) * (int(text["kv_lora_rank"]) + int(text.get("qk_rope_head_dim") or 0))
    shapes = [t["shape"][0] for name, t in tensors if _KEYS_AND_VALUES.search(name) and "vision" not in name]
    if shapes:  # no config tells it better, and many leave to defaults what these say
        return int(sum(shapes))
    heads, width = _first(text, "num_attention_heads", "n_head"), _first(text, "hidden_size", "n_embd")
    if layers and heads and width:
        size = text.get("head_dim") or width // heads
        return int(2 * layers * (text.get("num_key_value_heads") or heads) * size)
    return None


def _kept_tokens(config: ModelConfig, values: dict[str, Any], text: dict[str, Any], context: int) -> float:
    """Tokens of a whole context that stay in the cache, as a mean over the layers.

    A layer with a sliding window keeps the window and what vLLM computes in one step.
    """
    window, share = text.get("sliding_window"), _sliding_share(values, text)
    if not window or not share:
        return context
    step = 0 if config.engine == "transformers" else config.engine_args.get("max_num_batched_tokens") or _STEP_TOKENS
    return (1 - share) * context + share * min(context, int(window) + int(step))


def _sliding_share(values: dict[str, Any], text: dict[str, Any]) -> float:
    """The share of layers that look at a sliding window only, where the config says which."""
    kinds = text.get("layer_types")
    if kinds:
        cached = [kind for kind in kinds if kind in _CACHED_LAYERS]
        return cached.count("sliding_attention") / max(1, len(cached))
    pattern = text.get("sliding_window_pattern")  # of so many layers the last looks at everything
    if isinstance(pattern, int) and pattern > 0:
        return 1 - 1 / pattern
    is_windowed = text.get("model_type", values.get("model_type")) in ("mistral", "mixtral")
    return 1.0 if is_windowed else 0.0


def _image_tokens(folder: Path, values: dict[str, Any]) -> int | None:
    """Tokens of one image where the checkpoint fixes them; None where the image's size decides, or unknown."""
    processor = folder / "processor_config.json"
    for config in (values, _json(processor) if processor.is_file() else {}):
        number = _first(config, "image_seq_length", "mm_tokens_per_image", "image_seq_len", "num_image_tokens")
        if number:
            return int(number)
    vision = values.get("vision_config")
    if not isinstance(vision, dict) or values.get("model_type") not in ("llava", "paligemma"):
        return None
    edge, patch = vision.get("image_size"), vision.get("patch_size")
    return (edge // patch) ** 2 if isinstance(edge, int) and isinstance(patch, int) and patch else None


def _first(values: dict[str, Any], *keys: str) -> Any:
    return next((values[key] for key in keys if values.get(key)), None)

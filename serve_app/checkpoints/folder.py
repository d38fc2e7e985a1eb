"""Checks a checkpoint's or an adapter's folder before a library loads it: complete, safe, of the right kind.

Reads only JSON and the headers of safetensors files, so that a bad folder is refused within milliseconds.
Knows nothing of where a folder came from.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from serve_app.errors import ConfigError

_CODE_FILES = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
_LFS_POINTER = b"version https://git-lfs"
_NUM_NAMES_SHOWN = 3


def check_checkpoint(folder: Path, source: str, needs_safetensors: bool) -> None:
    """Raise `ConfigError` with the fix where no library could load this folder as a model."""
    start = f"source '{source}'"
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ConfigError(f"{start} is a LoRA adapter: give its base model as the source and it under adapters")
        raise ConfigError(f"{start} has no config.json: give the folder of a Hugging Face checkpoint")
    _read_json(folder / "config.json", start)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        _check_shards(folder, _read_json(index, start), start)
        return
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        tensor_names(file, start)
    if not files and needs_safetensors:
        raise ConfigError(f"{start} {_why_no_safetensors(folder)}")


def check_adapter(folder: Path, source: str) -> None:
    """Raise `ConfigError` with the fix where this folder isn't a LoRA adapter with whole weights."""
    start = f"adapter '{source}'"
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(f"{start} has no adapter_config.json: give the folder of a LoRA adapter as PEFT saves it")
    _read_json(folder / "adapter_config.json", start)
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ConfigError(f"{start} has no adapter_model.safetensors: save it again as safetensors")
    tensor_names(weights, start)


def check_adapter_fits(adapter: Path, name: str, base: Path, source: str) -> None:
    """Raise `ConfigError` where the adapter changes a layer that its base has in another width.

    Only layers of the same name can be compared. An engine that maps names checks the others when it loads.
    """
    widths = {tensor: shape[-1] for file in base.glob("*.safetensors") for tensor, shape in _shapes(file).items()}
    for tensor, shape in _shapes(adapter / "adapter_model.safetensors").items():
        layer, is_input, _ = tensor.removeprefix("base_model.model.").partition(".lora_A.")
        width = widths.get(f"{layer}.weight")
        if is_input and width is not None and width != shape[-1]:
            raise ConfigError(
                f"adapter '{name}' doesn't fit source '{source}': its {layer} takes {shape[-1]} features, and the "
                f"model's {width}: give an adapter that was trained on this base"
            )


def _shapes(file: Path) -> dict[str, list[int]]:
    with safe_open(file, framework="numpy") as tensors:
        return {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 (not a dict)


def has_chat_template(folder: Path) -> bool:
    """Whether the checkpoint says how conversations become prompts."""
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    files = [folder / name for name in _CODE_FILES if (folder / name).is_file()]
    return any(_read_json(file, str(folder)).get("chat_template") for file in files)


def check_own_code(folder: Path, source: str) -> None:
    """Raise `ConfigError` where the code comes from another repository, which no `revision` of this one pins."""
    for name in _CODE_FILES:
        path = folder / name
        auto_map = _read_json(path, f"source '{source}'").get("auto_map") if path.is_file() else None
        for place in _texts(auto_map):
            if "--" in place:
                raise ConfigError(
                    f"source '{source}' runs code of another repository, {place.partition('--')[0]}, which its "
                    "revision doesn't pin: download both into one folder, and give that folder"
                )


def tensor_names(file: Path, start: str) -> frozenset[str]:
    """The names in a safetensors file, whose header and length are checked. Raises `ConfigError`."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            return frozenset(tensors.keys())
    except (SafetensorError, OSError) as exc:
        with file.open("rb") as head:
            is_pointer = head.read(len(_LFS_POINTER)) == _LFS_POINTER
        if is_pointer:
            raise ConfigError(f"{start}: {file.name} is only a Git LFS pointer: run `git lfs pull` there") from exc
        raise ConfigError(
            f"{start}: its weights are corrupt or cut short ({file.name}: {exc}): download the checkpoint again"
        ) from exc


def abridged(names: list[str]) -> str:
    """The first few names, and how many more."""
    shown = ", ".join(names[:_NUM_NAMES_SHOWN])
    rest = len(names) - _NUM_NAMES_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


def _check_shards(folder: Path, index: dict[str, Any], start: str) -> None:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise ConfigError(f"{start}: model.safetensors.index.json has no weight_map: download the checkpoint again")
    files = sorted(set(weight_map.values()))
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        raise ConfigError(
            f"{start} lacks {len(absent)} of its {len(files)} weight files ({abridged(absent)}): "
            "download the checkpoint again, completely"
        )
    tensors = {name: tensor_names(folder / name, start) for name in files}
    missing = sorted(tensor for tensor, name in weight_map.items() if tensor not in tensors[name])
    if missing:
        raise ConfigError(
            f"{start}: its weight files don't hold what their index says ({abridged(missing)}): "
            "download the checkpoint again"
        )


def _why_no_safetensors(folder: Path) -> str:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return (
            "has its weights only as pickles, which can run code when loaded: convert them to safetensors, or trust "
            "them with weights_format: any"
        )
    return "has no *.safetensors weights: download the checkpoint again, completely"


def _read_json(path: Path, start: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as exc:
        raise ConfigError(f"{start}: its {path.name} can't be read ({exc}): download the checkpoint again") from exc
    if not isinstance(values, dict):
        raise ConfigError(f"{start}: its {path.name} isn't a JSON object: download the checkpoint again")
    return values


def _texts(value: Any) -> list[str]:
    """Every text in an `auto_map`, whose values are texts or lists of them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict | list):
        return [text for item in (value.values() if isinstance(value, dict) else value) for text in _texts(item)]
    return []

"""Checkpoint folders with only what is looked at before a library loads them, and the ways to break one."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def whole(folder: Path) -> Path:
    """A config and one file of weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"a": np.zeros(64, np.float32), "b": np.ones(64, np.float32)}, folder / "model.safetensors")
    return folder


def sharded(folder: Path) -> Path:
    """The same in two files with an index."""
    whole(folder)
    (folder / "model.safetensors").unlink()
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for name, tensor in zip(names, "ab", strict=True):
        save_file({tensor: np.zeros(64, np.float32)}, folder / name)
    index = {"metadata": {}, "weight_map": dict(zip("ab", names, strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def adapter(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"a.lora_A.weight": np.zeros(8, np.float32)}, folder / "adapter_model.safetensors")
    return folder


def _write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def _remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def _cut(name: str, num_bytes: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:num_bytes])


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00002.safetensors"

# What was done to a whole or a sharded folder, and a part of the sentence that says so.
BROKEN: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object], str]] = {
    "no config": (whole, _remove("config.json"), "has no config.json: give the folder of a Hugging Face checkpoint"),
    "config isn't JSON": (whole, _write("config.json", b"{"), "config.json can't be read .*download the checkpoint"),
    "config is a list": (whole, _write("config.json", b"[]"), "config.json isn't a JSON object"),
    "an adapter": (adapter, lambda _: None, "is a LoRA adapter: give its base model as the source"),
    "no weights": (whole, _remove(WEIGHTS), r"has no \*.safetensors weights: download the checkpoint again"),
    "pickles": (
        whole, lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"), "only as pickles.*weights_format: any",
    ),
    "cut header": (whole, _cut(WEIGHTS, 40), "model.safetensors.*download the checkpoint again"),
    "cut data": (whole, _cut(WEIGHTS, -100), "corrupt or cut short .model.safetensors"),
    "empty": (whole, _write(WEIGHTS, b""), "corrupt or cut short"),
    "garbage": (whole, _write(WEIGHTS, b"\xff" * 500), "corrupt or cut short"),
    "a pointer": (whole, _write(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "lacks a shard": (sharded, _remove(SECOND), f"lacks 1 of its 2 weight files .{SECOND}.: download"),
    "cut shard": (sharded, _cut(SECOND, -1), f"corrupt or cut short .{SECOND}"),
    "index of other weights": (
        sharded, _write(INDEX, json.dumps({"weight_map": {"z": SECOND}}).encode()), "what their index says .z",
    ),
    "index without a map": (sharded, _write(INDEX, b"{}"), "no weight_map"),
}  # fmt: skip


def broken(kind: str, folder: Path) -> Path:
    build, spoil, _ = BROKEN[kind]
    build(folder)
    spoil(folder)
    return folder

"""`serve-app plan` on configs that work and configs that don't: what it says, and its exit code."""

import io
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from serve_app.cli.plan import screen
from serve_app.config.applications import ModelConfig
from serve_app.config.file import read_config_file
from serve_app.demo import CHECKPOINT
from serve_app.errors import ConfigError
from serve_app.plan.gpu_memory import GIB, memory_of
from serve_app.plan.model_size import size_of
from serve_app.plan.nodes import read_nodes
from serve_app.plan.verdict import Plan, make_plan
from tests.plan_cases import CASES, Case

ROOT = Path(__file__).parent.parent.parent


def planned(case: Case, folder: Path, gpu_memory_gib: float | None = None) -> Plan:
    path = folder / "serve_config.yaml"
    path.write_text(yaml.safe_dump(case.values()))
    return make_plan(read_config_file(path), read_nodes(list(case.nodes), gpu_memory_gib))


def said(plan: Plan) -> str:
    console = Console(width=250, file=io.StringIO(), record=True)
    console.print(screen(plan), soft_wrap=True)
    return console.export_text()


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "serve_app", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_verdict(case: Case, tmp_path: Path) -> None:
    if case.code == 2:
        with pytest.raises(ConfigError) as refused:
            planned(case, tmp_path)
        text = str(refused.value)
    else:
        plan = planned(case, tmp_path)
        text = said(plan)
        assert plan.works == (case.code == 0), text
        absent = {row.application.name for row in plan.rows if row.fit.num_placed < row.application.num_at_start}
        assert absent == set(case.unplaced)
    for part in case.says:
        assert part in text, text


def test_what_works_and_needs_no_word_gets_none(tmp_path: Path) -> None:
    plan = planned(Case("", "{m: {num_gpus: 1, autoscaling: {min_replicas: 2, max_replicas: 2}}}"), tmp_path)
    assert plan.findings == ()


def test_the_command_and_its_exit_codes(tmp_path: Path) -> None:
    path = tmp_path / "serve_config.yaml"
    good, bad, broken = (next(c for c in CASES if c.code == code and c.nodes == CASES[0].nodes) for code in (0, 1, 2))
    for case in (good, bad, broken):
        path.write_text(yaml.safe_dump(case.values()))
        done = run("plan", str(path), "--json", *(part for spec in case.nodes for part in ("--nodes", spec)))
        assert done.returncode == case.code, done.stderr
        if case.code == 2:
            assert all(part in done.stderr for part in case.says)
            assert "Traceback" not in done.stderr
        else:
            told = json.loads(done.stdout)
            assert told["works"] == (case.code == 0)
            assert all(finding["fix"] for finding in told["findings"])


def test_without_nodes_it_says_how_to_give_them(tmp_path: Path) -> None:
    path = tmp_path / "serve_config.yaml"
    path.write_text(yaml.safe_dump(CASES[0].values()))
    done = run("plan", str(path), "--address", "127.0.0.1:1")
    assert done.returncode == 2
    assert "no Ray cluster answers at '127.0.0.1:1'" in done.stderr
    assert "--nodes 4xCPU=16,GPU=2" in done.stderr


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("4xCPU", "neither nodes nor a file"),
        ("CPU=many", "CPU is 'many' and must be a number"),
        ("CPU=4,GPU", "'GPU' is no RESOURCE=AMOUNT"),
        ("0xCPU=4", "the number of nodes must be 1 to"),
        ("99999xCPU=4", "the number of nodes must be 1 to"),
        ("CPU=-1", "0 or more"),
        ("CPU=nan", "0 or more"),
        ("GPU=1.5", "GPU is 1.5 and must be a whole number"),
        ("absent.yaml", "neither nodes nor a file"),
    ],
)
def test_nodes_that_are_none(spec: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_nodes([spec], None)


@pytest.mark.parametrize("text", ["{}", "[]", "[3]", "{"])
def test_a_file_of_nodes_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "nodes.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"nodes\.yaml"):
        read_nodes([str(path)], None)


def test_nodes_from_specs_and_files(tmp_path: Path) -> None:
    path = tmp_path / "nodes.json"
    path.write_text(json.dumps([{"count": 2, "CPU": 8, "GPU": 1, "name": "gpu"}]))
    nodes = read_nodes([str(path), "CPU=4,gpu_memory_gib=24"], 80)
    assert [node.name for node in nodes] == ["gpu-1", "gpu-2", "node"]
    assert [node.gpu_memory_gib for node in nodes] == [80, 80, 24]
    assert nodes[0].total == {"CPU": 8.0, "GPU": 1.0}


def checkpoint(folder: Path, tensors: dict[str, list[int]], **config: Any) -> str:
    """A checkpoint's headers alone, without the gigabytes that they tell of."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps(
        {name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()}
    ).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return str(folder)


LLAMA_8B = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip
EIGHT_BILLION = {"w": [8_000, 1_000_000]}


def test_a_models_size_is_that_of_its_weights_and_layers(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", EIGHT_BILLION, **LLAMA_8B)
    size = size_of(ModelConfig(source=source, max_context_tokens=4096))
    assert size.weight_bytes == 16_000_000_000
    assert size.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2  # keys and values x layers x heads x size x bytes
    assert size.context_tokens == 4096
    assert size_of(ModelConfig(source=source, dtype="float32")).weight_bytes == 32_000_000_000
    assert size_of(ModelConfig(source=source, quantization="int8")).weight_bytes == 8_000_000_000
    fp8 = size_of(ModelConfig(source=source, engine_args={"kv_cache_dtype": "fp8"}))
    assert fp8.kv_bytes_per_token == 2 * 32 * 8 * 128


def test_layers_that_the_config_leaves_to_defaults_are_read_from_the_weights(tmp_path: Path) -> None:
    tensors = {
        f"language_model.model.layers.{i}.self_attn.{p}_proj.weight": [1024, 4096] for i in (0, 1) for p in "qkv"
    }
    tensors["vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.weight"] = [1024, 1024]
    source = checkpoint(
        tmp_path / "m", tensors, model_type="llava", text_config={"max_position_embeddings": 2048},
        vision_config={"image_size": 336, "patch_size": 14}, torch_dtype="float16",
    )  # fmt: skip
    size = size_of(ModelConfig(source=source))
    assert size.kv_bytes_per_token == 4 * 1024 * 2
    assert size.image_tokens == 576


def test_the_demo_models_size_is_its_files_and_its_own_models(tmp_path: Path) -> None:
    from transformers import AutoConfig

    size = size_of(ModelConfig(source="demo"))
    text = AutoConfig.from_pretrained(CHECKPOINT).get_text_config()
    in_file = (CHECKPOINT / "model.safetensors").stat().st_size
    assert size.weight_bytes is not None
    assert 0 < in_file - size.weight_bytes < 0.1 * in_file  # the rest is the header
    heads = text.num_key_value_heads * (text.head_dim or text.hidden_size // text.num_attention_heads)
    assert size.kv_bytes_per_token == 2 * text.num_hidden_layers * heads * 2


def test_what_is_not_here_is_unknown(tmp_path: Path) -> None:
    assert size_of(ModelConfig(source="nobody/nothing")).unknown == "not downloaded here"
    assert size_of(ModelConfig(source="s3://bucket/model")).unknown == "not downloaded here"
    (tmp_path / "config.json").write_text("{")
    assert "can't be read" in str(size_of(ModelConfig(source=str(tmp_path))).unknown)


@pytest.mark.parametrize(
    ("values", "num_kept"),
    [
        ({}, 32 * 8192),
        ({"layer_types": ["sliding_attention", "full_attention"] * 16, "sliding_window": 1024}, 16 * (8192 + 3072)),
        ({"layer_types": ["sliding_attention"] * 32, "sliding_window": 100_000}, 32 * 8192),
        ({"sliding_window_pattern": 4, "sliding_window": 1024}, 8 * 8192 + 24 * 3072),
        ({"model_type": "mistral", "sliding_window": 1024}, 32 * 3072),
        ({"model_type": "mistral", "sliding_window": None}, 32 * 8192),
        ({"model_type": "qwen2", "sliding_window": 1024, "use_sliding_window": False}, 32 * 8192),
    ],
)
def test_layers_with_a_sliding_window_keep_no_whole_context(
    tmp_path: Path, values: dict[str, Any], num_kept: int
) -> None:
    source = checkpoint(tmp_path / "m", EIGHT_BILLION, **LLAMA_8B | values)
    size = size_of(ModelConfig(source=source, engine="vllm", engine_args={"max_num_batched_tokens": 2048}))
    assert size.kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    assert size.kv_bytes_per_context == num_kept * 2 * 8 * 128 * 2


@pytest.mark.parametrize(
    ("values", "share"),
    [
        ({}, 0.92),
        ({"num_gpus": 0.5}, 0.46),
        ({"num_gpus": 0.25}, 0.23),
        ({"num_gpus": 0.5, "engine_args": {"gpu_memory_utilization": 0.3}}, 0.3),
        ({"tensor_parallel_size": 2}, 0.92),
    ],
)
def test_the_share_of_memory_follows_from_the_fraction(values: dict[str, Any], share: float) -> None:
    config = ModelConfig.model_validate({"source": "x", "engine": "vllm"} | values)
    assert config.gpu_memory_share == share


def test_memory_left_for_the_cache_and_the_sequences_in_it(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", EIGHT_BILLION, **LLAMA_8B)
    config = ModelConfig(source=source, engine="vllm", num_gpus=1)
    memory = memory_of(config, size_of(config), 80)
    assert memory.budget_gib == pytest.approx(73.6)
    tokens = int((0.92 * 80 - 16e9 / GIB) * GIB / 131072)
    assert memory.cache_tokens == tokens
    assert memory.num_full_contexts == tokens // 8192
    split = ModelConfig(source=source, engine="vllm", tensor_parallel_size=2)
    both = memory_of(split, size_of(split), 80).cache_tokens
    assert both == pytest.approx(2 * (0.92 * 80 - 8e9 / GIB) * GIB / 131072, abs=1)


@pytest.mark.parametrize(
    ("args", "gib", "sentence"),
    [
        (
            {"num_gpus": 1},
            16,
            "the weights take 14.90 GiB on each GPU, and it has 0.92 of a GPU's 16 GiB = 14.72 GiB",
        ),
        ({"num_gpus": 0.5}, 24, "14.90 GiB on each GPU, and it has 0.46 of a GPU's 24 GiB = 11.04 GiB"),
        ({"num_gpus": 1}, 17, "leaves 0.74 GiB for keys and values, 6,052 tokens of 131,072 bytes, and one context"),
        (
            {"num_gpus": 0.5, "engine_args": {"kv_cache_memory_bytes": 8 << 30}},
            48,
            "14.90 GiB of weights and 8.00 GiB for keys and values are more than 0.46 of a GPU's 48 GiB = 22.08 GiB",
        ),
        ({"tensor_parallel_size": 2}, 8, "the weights take 7.45 GiB on each GPU over 2 ranks, and it has 0.92 of a"),
    ],
)
def test_memory_that_is_not_there_is_shown_as_arithmetic(
    tmp_path: Path, args: dict[str, Any], gib: float, sentence: str
) -> None:
    source = checkpoint(tmp_path / "m", EIGHT_BILLION, **LLAMA_8B)
    models = json.dumps({"m": args | {"engine": "vllm", "source": source}})
    plan = planned(Case("", models, nodes=("CPU=4,GPU=2",)), tmp_path, gib)
    assert not plan.works
    assert sentence in said(plan)


def test_an_image_larger_than_the_context(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", EIGHT_BILLION, **LLAMA_8B, image_seq_length=1024)
    args = {"source": source, "engine": "vllm", "tasks": ["caption"], "max_context_tokens": 512, "num_gpus": 1}
    plan = planned(Case("", json.dumps({"m": args})), tmp_path)
    assert "one image takes 1,024 tokens and the context is 512" in said(plan)


def test_weights_larger_than_a_node_without_gpus(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "m", EIGHT_BILLION, **LLAMA_8B)
    models = json.dumps({"m": {"source": source, "engine": "transformers"}})
    plan = planned(Case("", models, nodes=("CPU=4,memory_gib=8",)), tmp_path)
    assert "the weights take 14.90 GiB and the node has 8 GiB of memory" in said(plan)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("applications: &x [{name: a, args: {source: x, engine: vllm, source: y}}]\nhttp_options: *x\n")
    with pytest.raises(ConfigError, match="line 1: 'source' is there 2 times: keep one"):
        read_config_file(path)


def test_the_operations_page_shows_what_plan_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # nothing is downloaded
    plan = make_plan(
        read_config_file(ROOT / "serve_config.yaml"), read_nodes(["3xCPU=16,GPU=2,gpu_memory_gib=80"], None)
    )
    for line in said(plan).splitlines():
        assert line.rstrip() in page

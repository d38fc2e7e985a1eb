"""A model in two stages, each on a rank of its own: it answers as transformers does with the whole.

The demo's text part as a Llama, because vLLM splits no Idefics3 into stages; on made-up GPUs (tests/ray_nodes.py).
"""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.deployments.test_tensor_parallel import (
    START_TIMEOUT_S,
    TEXTS,
    assert_one_rank_in_each_gpu_bundle,
    body,
    config,
    group_of,
    text,
)
from tests.ray_nodes import ray_nodes
from tests.service import serving
from tests.vllm_models import build_text_part, starts_vllm

pytestmark = [*starts_vllm, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1800)]

# On CPUs vLLM makes a later stage's buffers only while it warms up, and it does so only to compile: here in name.
WARMED_UP = {
    "compilation_config": {"mode": 2, "backend": "eager"},
    "max_num_seqs": 16,
    "gpu_memory_utilization": 0.15,
    "num_gpu_blocks_override": 32,
}


def greedy(folder: Path, words: str) -> tuple[str, int]:
    """The answer of the whole on transformers, and how many tokens it has."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    asked = [{"role": "user", "content": [text(words)]}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, do_sample=False, max_new_tokens=60)[0, prompt["input_ids"].shape[1] :]
    return tokenizer.decode(tokens, skip_special_tokens=True), len(tokens)


def test_two_stages_answer_as_the_whole(tmp_path: Path) -> None:
    stages = {"pipeline_parallel_size": 2, "source": str(build_text_part(tmp_path)), "engine_args": WARMED_UP}
    answers = []
    with (
        ray_nodes([{"num_cpus": 2, "num_gpus": 2}]) as nodes,
        serving(config(stages=stages), START_TIMEOUT_S, nodes.environment, nodes.address) as service,
        service.client as client,
    ):
        assert_one_rank_in_each_gpu_bundle(group_of(nodes, "stages"))
        for words in TEXTS:
            answer = client.post("/v1/chat/completions", json=body("stages", text(words), max_tokens=60)).json()
            told = answer["choices"][0]["message"]["content"]
            answers.append((told, answer["usage"]["completion_tokens"]))
    assert answers == [greedy(tmp_path, words) for words in TEXTS]
    assert "demo" in answers[0][0]

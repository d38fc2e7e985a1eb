"""vLLM says what transformers says: greedy, in float32, for each row that both engines serve."""

import os
from dataclasses import replace

import pytest
from transformers.utils import is_torchvision_available

from serve_app.config.applications import ModelConfig
from serve_app.engines.vllm.args import serves
from serve_app.messages import GenerationRequest
from tests.matrix.conftest import Checkpoints
from tests.matrix.near_ties import num_same, text_of, tokens_of
from tests.matrix.outcomes import record
from tests.matrix.rows import ROWS, Row
from tests.matrix.test_engine import mixed_requests
from tests.tiny_engine import chunks_of, started
from tests.vllm_models import ENVIRONMENT, needs_vllm

pytestmark = [pytest.mark.models, needs_vllm, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]

CONTEXT_LENGTH = 256


def served_here(row: Row) -> bool:
    return row.vllm == "yes" or (row.vllm == "needs torchvision" and is_torchvision_available())


def needed_here(row: Row) -> bool:
    return row.vllm == "yes"


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=[] if needed_here(row) else [pytest.mark.second_environment])
        for row in ROWS
        if row.vllm != "no" and not row.vllm_differs
    ],
)
async def test_both_engines_say_the_same(row: Row, checkpoints: Checkpoints) -> None:
    if not served_here(row):
        pytest.skip("vLLM's module for it imports torchvision: make test-models")
    from serve_app.engines.vllm.engine import VllmEngine

    os.environ.update(ENVIRONMENT)
    folder = checkpoints.of(row)
    asked = [with_logprobs(one) for one in mixed_requests(row)]
    async with started(folder, dtype=row.vllm_dtype) as engine:
        theirs = [await chunks_of(engine, one) for one in asked]
    arguments = {"enforce_eager": True, "max_num_seqs": 8, "max_model_len": CONTEXT_LENGTH}
    config = ModelConfig(source=str(folder), engine="vllm", dtype=row.vllm_dtype, engine_args=arguments)
    vllm = VllmEngine(config)
    await vllm.start()
    try:
        ours = [await chunks_of(vllm, one) for one in asked]
        assert (vllm.takes_images, vllm.family) == (row.takes_images, row.family)
    finally:
        await vllm.stop()
    num_compared = 0
    for request, expected, found in zip(asked, theirs, ours, strict=True):
        assert found[0].num_prompt_tokens == expected[0].num_prompt_tokens, request.messages
        num_same_steps = num_same(tokens_of(expected), tokens_of(found), row.vllm_dtype)
        if num_same_steps == len(tokens_of(expected)):
            assert text_of(expected) == text_of(found)
        num_compared += num_same_steps
    assert num_compared > sum(len(tokens_of(one)) for one in theirs) / 2  # ties are rare, or this test says nothing
    record(row.name, "vllm", f"as transformers over {len(asked)} requests in {row.vllm_dtype}")


@pytest.mark.second_environment
@pytest.mark.skipif(not is_torchvision_available(), reason="needs torchvision: make test-models")
@pytest.mark.parametrize(("name", "is_served"), [("gemma3", False), ("paligemma", False), ("llava", True)])
def test_auto_leaves_what_vllm_would_mask_wrongly(name: str, is_served: bool, checkpoints: Checkpoints) -> None:
    """On CPUs: images that see forward. With `engine: vllm` they are served nevertheless, with a warning."""
    folder = checkpoints.of(next(row for row in ROWS if row.name == name))
    assert serves(ModelConfig(source=str(folder)), folder) == is_served


def with_logprobs(request: GenerationRequest) -> GenerationRequest:
    sampling = replace(request.sampling, num_logprobs=2)
    return replace(request, id=f"{request.id}-{id(request)}", sampling=sampling, timeout_s=300)  # the first is slow

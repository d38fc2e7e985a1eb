"""Requests that join a running batch: the same tokens as alone, no harm to the others, places free at once."""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from serve_app.engines.transformers import batch_worker, kv_cache
from serve_app.engines.transformers.engine import TransformersEngine
from serve_app.engines.transformers.step_batch import can_join
from serve_app.errors import EngineFailed
from serve_app.messages import GenerationRequest
from tests.streaming import stream
from tests.tiny_engine import StepGate, answer, image, model_of, num_running, request, started, together

pytestmark = pytest.mark.engine


def stagger(takes_images: bool) -> list[GenerationRequest]:
    """A long answer, then a longer prompt, then a short one, greedy and sampled."""
    asked = [
        request("a first question", max_tokens=60, ignores_eos=True),
        request("word " * 30, max_tokens=25, ignores_eos=True),
        request("hm", max_tokens=20, temperature=0.9, top_k=40, seed=3),
    ]
    if takes_images:
        asked += [
            request(image(40, 24, 1), "what is this?", max_tokens=30),
            request("compare", image(90, 30, 2), image(20, 50, 3), max_tokens=10),
        ]
    return asked


async def joined_one_by_one(engine: TransformersEngine, asked: list[GenerationRequest]) -> list[Any]:
    """Each request arrives three steps after the one before it, while all earlier ones run."""
    gate = StepGate(engine, *(2 + 3 * number for number in range(1, len(asked))))
    tasks = [asyncio.create_task(answer(engine, asked[0]))]
    for one in asked[1:]:
        await gate.is_held()
        tasks.append(await gate.arrive(one))
        gate.go()
    return await asyncio.gather(*tasks)


@pytest.mark.parametrize("model", ["llama", "idefics3", "llava", "demo"])
async def test_joined_is_batched_is_alone_is_generate(
    checkpoints: dict[str, Path], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stagger(model != "llama")
    async with started(checkpoints[model], dtype="float32") as engine:
        alone = [await answer(engine, one) for one in asked]
        assert await together(engine, asked) == alone
        assert await joined_one_by_one(engine, asked) == alone
    monkeypatch.setattr(batch_worker, "can_join", lambda model: False)
    async with started(checkpoints[model], dtype="float32") as engine:
        assert [await answer(engine, one) for one in asked] == alone


async def test_a_short_answer_overtakes_a_long_one(checkpoints: dict[str, Path]) -> None:
    async with started(checkpoints["llama"]) as engine:
        gate = StepGate(engine, 5, 50)
        long = asyncio.create_task(answer(engine, request("long", max_tokens=200, ignores_eos=True)))
        await gate.is_held()
        short = await gate.arrive(request("short", max_tokens=5))
        gate.go()
        await short
        await gate.is_held()  # the long one is still on its way
        assert not long.done()
        gate.go()
        assert (await long)[1] == 200


async def test_padding_leaves_with_the_row_that_needed_it(checkpoints: dict[str, Path]) -> None:
    async with started(checkpoints["llama"]) as engine:
        gate = StepGate(engine, 4, 20)
        short = asyncio.create_task(answer(engine, request("s", max_tokens=30, ignores_eos=True)))
        await gate.is_held()
        long = await gate.arrive(request("long " * 30, max_tokens=3, ignores_eos=True))
        gate.go()
        await long
        await gate.is_held()
        batch = steps_of(engine)
        num_prompt = len(batch.rows[0].prompt.tensors["input_ids"][0])
        assert batch._cache.get_seq_length() == batch._mask.shape[1] == num_prompt + len(batch.rows[0].tokens) - 1
        gate.go()
        assert (await short)[1] == 30


async def test_answers_to_one_prompt_share_its_prefill(checkpoints: dict[str, Path]) -> None:
    async with started(checkpoints["llama"]) as engine:
        gate = StepGate(engine)
        widths: list[int] = []
        model_of(engine).register_forward_pre_hook(
            lambda module, args, kwargs: widths.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        asked = request("several", num_answers=4, temperature=1.0, seed=1, max_tokens=6, ignores_eos=True)
        async with aclosing(stream(engine, asked)) as chunks:
            assert {chunk.index async for chunk in chunks} == {0, 1, 2, 3}
        assert gate.num_steps == 6
        assert widths == [1, 4, 4, 4, 4, 4]


def out_of_memory(engine: TransformersEngine, fails: Any) -> None:
    """The real exception, from inside the model's last layer, in the forwards that `fails` says."""

    def before(module: Any, args: Any, kwargs: Any) -> None:
        if fails(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    model_of(engine).model.layers[-1].register_forward_pre_hook(before, with_kwargs=True)


async def test_out_of_memory_in_a_prefill_fails_the_newcomers_only(checkpoints: dict[str, Path]) -> None:
    runs, comes = request("runs", max_tokens=40), request("a much longer newcomer", max_tokens=4)
    async with started(checkpoints["llama"]) as engine:
        alone = await answer(engine, runs)
        out_of_memory(engine, lambda hidden: hidden.shape[1] > 30)
        gate = StepGate(engine, 6)
        running = asyncio.create_task(answer(engine, runs))
        await gate.is_held()
        newcomer = await gate.arrive(comes)
        gate.go()
        with pytest.raises(EngineFailed, match="max_batch_size"):
            await newcomer
        assert await running == alone
        await engine.check_health()


async def test_out_of_memory_in_a_step_fails_its_rows_and_the_engine_lives(checkpoints: dict[str, Path]) -> None:
    async with started(checkpoints["llama"]) as engine:
        out_of_memory(engine, lambda hidden: len(hidden) > 2)
        asked = [answer(engine, request(f"question {n}", ignores_eos=True)) for n in range(3)]
        failed = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(error) for error in failed] == [EngineFailed] * 3
        await engine.check_health()
        assert len(await together(engine, [request("a"), request("b")])) == 2
        assert num_running(engine) == engine.num_waiting == 0


async def test_out_of_memory_in_a_whole_batch(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_worker, "can_join", lambda model: False)
    async with started(checkpoints["llama"]) as engine:
        out_of_memory(engine, lambda hidden: len(hidden) > 1)
        failed = await asyncio.gather(*(answer(engine, request(t)) for t in "ab"), return_exceptions=True)
        assert [type(error) for error in failed] == [EngineFailed, EngineFailed]
        assert (await answer(engine, request("c")))[1] > 0


async def test_a_client_that_leaves_frees_its_place_within_a_step(checkpoints: dict[str, Path]) -> None:
    async with started(checkpoints["llama"], max_batch_size=1) as engine:
        gate = StepGate(engine, 4)
        async with aclosing(stream(engine, request("leaves", max_tokens=200, ignores_eos=True))) as leaving:
            await anext(leaving)
            await gate.is_held()
            waiting = await gate.arrive(request("waits", max_tokens=5, ignores_eos=True))
        gate.go()
        assert (await waiting)[1] == 5
        assert gate.num_steps == 4 + 5  # the held step was the last one of the row that left


async def test_never_more_rows_than_max_batch_size(checkpoints: dict[str, Path]) -> None:
    async with started(checkpoints["llama"], max_batch_size=3) as engine:
        sizes: list[int] = []
        model_of(engine).register_forward_pre_hook(
            lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        asked = [request(f"q{n}", max_tokens=3 + n, ignores_eos=True) for n in range(7)]
        await together(engine, asked)
        assert max(sizes) == 3


def test_a_failed_join_leaves_the_running_cache_as_it_was() -> None:
    def cache(num_rows: int, num_tokens: int, last_size: int = 4) -> Any:
        made = transformers.DynamicCache()
        for layer, size in enumerate((4, last_size)):
            keys = torch.randn(num_rows, 2, num_tokens, size)
            made.update(keys, keys + 1, layer)
        return made

    running = cache(2, 5)
    before = [(layer.keys.clone(), layer.values.clone()) for layer in running.layers]
    with pytest.raises(RuntimeError):
        kv_cache.join(running, cache(1, 9, last_size=3))  # its last layer doesn't fit
    for layer, (keys, values) in zip(running.layers, before, strict=True):
        assert layer.keys.equal(keys)
        assert layer.values.equal(values)
    kv_cache.join(running, cache(1, 9))
    assert running.layers[1].keys.shape == (3, 2, 9, 4)
    kv_cache.keep(running, [1], padding=4)
    assert running.layers[1].keys.equal(before[1][0][1:])


JOINS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "Qwen2ForCausalLM": {},
    "OPTForCausalLM": {},
    "GPT2LMHeadModel": {},
}
DOES_NOT: dict[str, dict[str, Any]] = {
    "MistralForCausalLM": {"sliding_window": 64},
    "Gemma2ForCausalLM": {},
    "PaliGemmaForConditionalGeneration": {},
    "GitForCausalLM": {},
    "Blip2ForConditionalGeneration": {},
    "Qwen2VLForConditionalGeneration": {},
    "T5ForConditionalGeneration": {},
    "MambaForCausalLM": {},
    "BloomForCausalLM": {},
    "Phi3ForCausalLM": {},
}


@pytest.mark.parametrize(("name", "settings"), (JOINS | DOES_NOT).items())
def test_what_joins(name: str, settings: dict[str, Any]) -> None:
    architecture = getattr(transformers, name)
    with torch.device("meta"):
        model = architecture(architecture.config_class(**settings))
    assert can_join(model) == (name in JOINS)


def steps_of(engine: TransformersEngine) -> Any:
    worker: Any = engine._worker
    return worker._steps

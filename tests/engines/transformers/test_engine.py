"""The transformers engine on real, tiny, random checkpoints: what is batched equals what runs alone."""

import asyncio
import json
import shutil
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from serve_app.config.applications import ModelConfig
from serve_app.engines.transformers.engine import TransformersEngine
from serve_app.errors import ConfigError, ContextTooLong, DeadlineExceeded, EngineFailed, UnsupportedTask
from serve_app.messages import GenerationRequest, Tool, ToolUse
from serve_app.metrics.registry import Metrics
from serve_app.replica.replica import Replica
from tests.streaming import stream
from tests.tiny_engine import answer, chunks_of, image, model_of, request, started, together

pytestmark = pytest.mark.engine


def mixed_requests() -> list[GenerationRequest]:
    return [
        request(image(40, 24, 1), "what is this?"),
        request("no image here", max_tokens=20),
        request("a longer text about nothing at all, without any image", max_tokens=5),
        request("first", image(16, 64, 2), "and then", image(90, 90, 3), "differ?", max_tokens=9),
        request(image(8, 8, 4), "and a much longer question about this very small picture?"),
        request(image(100, 20, 5), "sampled", temperature=0.8, top_p=0.9, seed=11),
        request(image(20, 20, 6), image(21, 21, 7), "two", temperature=1.0, seed=12),
    ]


@pytest.mark.parametrize("model", ["idefics3", "llava"])
async def test_batched_is_alone_with_and_without_images(checkpoints: dict[str, Path], model: str) -> None:
    async with started(checkpoints[model]) as engine:
        alone = [await answer(engine, one) for one in mixed_requests()]
        assert await together(engine, mixed_requests()) == alone
        assert len({text for text, _, _ in alone}) == len(alone)  # an image or text does change the answer


async def test_batched_is_alone_for_text(checkpoints: dict[str, Path]) -> None:
    asked = [request("word " * n, max_tokens=10 + n) for n in range(1, 9)]
    async with started(checkpoints["llama"]) as engine:
        alone = [await answer(engine, one) for one in asked]
        assert await together(engine, asked) == alone


async def test_stream_is_what_generate_decodes(checkpoints: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama"])
    tokens = AutoTokenizer.from_pretrained(checkpoints["llama"])
    prompt = tokens.apply_chat_template(
        [{"role": "user", "content": "héllo"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=60, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    async with started(checkpoints["llama"]) as engine:
        text, num_tokens, _ = await answer(engine, request("héllo", max_tokens=60))
        chunks = await chunks_of(engine, request("héllo", max_tokens=60))
    assert text == tokens.decode(output, skip_special_tokens=True)
    assert num_tokens == len(output)
    assert {c.num_prompt_tokens for c in chunks} == {prompt["input_ids"].shape[1]}
    assert [c.queue_s is not None for c in chunks] == [True] + [False] * (len(chunks) - 1)
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)


async def test_no_chat_template_is_plain_text(checkpoints: dict[str, Path]) -> None:
    async with started(checkpoints["plain"]) as engine:
        assert (await chunks_of(engine, request("abc")))[0].num_prompt_tokens == len("abc")


async def test_a_seed_gives_the_same_answer_alone_and_in_company(checkpoints: dict[str, Path]) -> None:
    seeded = request("tell me", temperature=1.0, top_p=0.95, seed=7)
    company = [request(f"company {n}", temperature=1.5, seed=n) for n in range(3)]
    async with started(checkpoints["llama"]) as engine:
        alone = await answer(engine, seeded)
        assert (await together(engine, [company[0], seeded, *company[1:]]))[1] == alone
        others = await together(engine, [request("tell me", temperature=1.0, seed=n) for n in range(8)])
    assert len(set(others)) > 1


@pytest.mark.parametrize("max_tokens", [1, 2, 7])
async def test_max_tokens_is_exact(checkpoints: dict[str, Path], max_tokens: int) -> None:
    async with started(checkpoints["llama"]) as engine:
        _, num_tokens, finish = await answer(engine, request("count", max_tokens=max_tokens))
    assert (num_tokens, finish) == (max_tokens, "length")


async def test_stop_strings_across_tokens_are_never_shown(checkpoints: dict[str, Path]) -> None:
    async with started(checkpoints["llama"]) as engine:
        text, _, _ = await answer(engine, request("stop", max_tokens=40))
        stop = text[5:9]  # one byte a token, so it spans tokens
        shown, num_tokens, finish = await answer(engine, request("stop", max_tokens=40, stop=(stop, "\x00never")))
    assert shown == text[: text.index(stop)]
    assert finish == "stop"
    assert num_tokens < 40


@pytest.mark.parametrize(("joins", "num_at_once"), [(True, 5), (False, 10)])
async def test_a_batch_that_none_can_join_has_the_next_one_at_hand(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, joins: bool, num_at_once: int
) -> None:
    monkeypatch.setattr("serve_app.engines.transformers.batch_worker.can_join", lambda _: joins)
    async with started(checkpoints["llama"], max_batch_size=5) as engine:
        assert engine.num_at_once == num_at_once


async def test_context_errors_name_both_numbers(checkpoints: dict[str, Path]) -> None:
    async with started(checkpoints["llama"], max_context_tokens=50) as engine:
        assert engine.context_length == 50
        with pytest.raises(ContextTooLong, match=r"(?s)50 tokens.* 4\d\d tokens"):
            await answer(engine, request("x" * 400, max_tokens=None))
        with pytest.raises(ContextTooLong, match=r"(?s)50 tokens.*45"):
            await answer(engine, request("hello", max_tokens=45))
        _, num_tokens, finish = await answer(engine, request("hi", max_tokens=None))
        assert finish == "stop" or num_tokens > 20


async def test_a_text_model_refuses_images(checkpoints: dict[str, Path]) -> None:
    async with started(checkpoints["llama"]) as engine:
        assert not engine.takes_images
        with pytest.raises(UnsupportedTask, match="tiny"):
            await answer(engine, request(image(8, 8, 1), "what?"))


@pytest.mark.parametrize("model", ["idefics3", "llava"])
async def test_a_typed_placeholder_is_a_text(checkpoints: dict[str, Path], model: str) -> None:
    good = request(image(30, 30, 1), "good")
    async with started(checkpoints[model]) as engine:
        alone = await answer(engine, good)
        for typed in (request("a <image> in text"), request(image(9, 9, 2), "a <image> in text")):
            assert (await asyncio.gather(answer(engine, good), answer(engine, typed)))[0] == alone
            like = request(*typed.images, "a (image) in text")  # of as many bytes, each of them a token
            told = [(await chunks_of(engine, each))[0].num_prompt_tokens for each in (typed, like)]
            assert told[0] == told[1]


async def test_closing_frees_the_row_and_spares_the_others(checkpoints: dict[str, Path]) -> None:
    steps = 0

    async with started(checkpoints["llama"]) as engine:
        model = model_of(engine)
        forward = model.forward

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            return forward(*args, **kwargs)

        model.forward = counted
        other = asyncio.create_task(answer(engine, request("other", max_tokens=30)))
        async with aclosing(stream(engine, request("leaves", max_tokens=200))) as leaving:
            await anext(leaving)
        assert (await other)[1] <= 30
        assert steps < 60  # the row that left would have gone on to 200
        assert engine.num_waiting == 0
        assert (await answer(engine, request("after")))[1] > 0


async def test_waiting_requests_leave_at_their_deadline(checkpoints: dict[str, Path]) -> None:
    async with started(checkpoints["llama"], max_batch_size=1) as engine:
        model = model_of(engine)
        forward, go_on = model.forward, asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow(*args: Any, **kwargs: Any) -> Any:
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(30)
            return forward(*args, **kwargs)

        model.forward = slow
        first = asyncio.create_task(answer(engine, request("first")))
        try:
            with pytest.raises(DeadlineExceeded):
                async with asyncio.timeout(10):
                    await answer(engine, request("second", timeout_s=0.5))
        finally:
            go_on.set()
        assert (await first)[1] > 0
        assert engine.num_waiting == 0


@pytest.mark.parametrize("choice", ["auto", "required", "named"])
async def test_functions_need_the_other_engine(checkpoints: dict[str, Path], choice: Any) -> None:
    tools = (Tool("look", "{}"),)
    async with started(checkpoints["llama"]) as engine:
        with pytest.raises(UnsupportedTask, match="vllm"):
            await answer(engine, request("call", tool_use=ToolUse(tools, choice)))
        for unused in (ToolUse(tools, "none"), ToolUse(())):
            assert (await answer(engine, request("call", tool_use=unused)))[1] > 0


async def test_stop_ends_running_work(checkpoints: dict[str, Path]) -> None:
    async with started(checkpoints["llama"]) as engine:
        answers = stream(engine, request("long", max_tokens=200))
        await anext(answers)
        await engine.stop()
        with pytest.raises(EngineFailed):
            async for _ in answers:
                pass


def _change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def _drop_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def _drop_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1." not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


# What is done to a whole checkpoint, and a part of the sentence that says so. tests/checkpoints/test_source.py has
# what is seen before any library loads.
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (shutil.rmtree, "there is no folder"),
    "cut short": (lambda f: (f / "model.safetensors").write_bytes(b"x" * 1000), "corrupt or cut short"),
    "unknown architecture": (
        lambda f: (f / "config.json").write_text('{"model_type": "no_such_thing"}'),
        "architecture that this engine doesn't know .*no_such_thing",
    ),
    "code of its own": (
        lambda f: _change_config(f, model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
        "brings its own Python code: read it, then allow it with trust_remote_code: true",
    ),
    "missing tensors": (_drop_tensors, r"lacks 9 of the model's weights .model.layers.1.* and 6 more., which"),
    "other shapes": (lambda f: _change_config(f, intermediate_size=96), "other shapes than its config.json says"),
    "no tokenizer": (_drop_tokenizer, "its tokenizer or processor"),
}


@pytest.mark.parametrize("kind", BAD)
async def test_bad_checkpoints_are_config_errors(checkpoints: dict[str, Path], tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoints["llama"], folder)
    spoil, sentence = BAD[kind]
    spoil(folder)
    with pytest.raises(ConfigError, match=f"^source '{folder}'.*{sentence}") as raised:
        await TransformersEngine(ModelConfig(source=str(folder), engine="transformers")).start()
    assert "\n" not in str(raised.value)


async def test_a_start_says_what_it_does(checkpoints: dict[str, Path]) -> None:
    steps: list[str] = []
    engine = TransformersEngine(ModelConfig(source=str(checkpoints["llama"])))
    await engine.start(steps.append)
    await engine.stop()
    assert steps == ["loading weights"]


async def test_every_tiny_model_warms_up(checkpoints: dict[str, Path]) -> None:
    for name, folder in checkpoints.items():
        config = ModelConfig(source=str(folder))
        registry = CollectorRegistry()
        await Replica(name, config, TransformersEngine(config), Metrics(registry, models=[name])).start()


async def test_wrong_engine_args_are_a_config_error(checkpoints: dict[str, Path]) -> None:
    config = ModelConfig(source=str(checkpoints["llama"]), engine_args={"no_such_argument": 1})
    with pytest.raises(ConfigError, match="no_such_argument"):
        await TransformersEngine(config).start()

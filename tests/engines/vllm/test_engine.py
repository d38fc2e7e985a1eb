"""The demo model on vLLM's CPU build, in this process: what the engine must do beyond what HTTP shows."""

import asyncio
import json
import os
import random
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jsonschema
import pytest
import pytest_asyncio
import torch

from demo_model.drawing import render
from demo_model.phrases import STYLE_PROMPTS
from demo_model.scenes import random_split_scene
from serve_app.config.applications import ModelConfig
from serve_app.dialects.openai.chat_body import ChatBody
from serve_app.engines.transformers.engine import TransformersEngine
from serve_app.errors import ContextTooLong, DeadlineExceeded, InvalidRequest, RequestError
from serve_app.exchange.validation import validate
from serve_app.messages import (
    Chunk,
    GenerationRequest,
    Generator,
    Message,
    OutputFormat,
    RawPrompt,
    RgbImage,
    Sampling,
    Text,
    Tool,
    ToolUse,
)
from tests.schema_cases import KEPT, REFUSED
from tests.streaming import stream
from tests.vllm_models import ENGINE_ARGS, ENVIRONMENT, build_int8_demo, starts_vllm

if TYPE_CHECKING:
    from serve_app.engines.vllm.engine import VllmEngine

pytestmark = [
    *starts_vllm,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings(
        "default"
    ),  # vLLM and what it imports warn at will, and leave sockets to the collector
]

NUM_PARITY_IMAGES = 200
_CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = Tool("weather", json.dumps(_CITY), is_strict=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator["VllmEngine"]:
    from serve_app.engines.vllm.engine import VllmEngine

    os.environ.update(ENVIRONMENT)
    started = VllmEngine(ModelConfig(source="demo", engine="vllm", dtype="float32", engine_args=ENGINE_ARGS))
    await started.start()
    yield started
    await started.stop()


def a_request(
    name: str,
    *parts: str | RgbImage,
    sampling: Sampling | None = None,
    timeout_s: float = 120.0,
    tools: ToolUse | None = None,
) -> GenerationRequest:
    content = tuple(Text(part) if isinstance(part, str) else part for part in parts)
    sampling = sampling or Sampling(temperature=0.0)
    return GenerationRequest(name, "demo", (Message("user", content),), sampling, timeout_s, tools)


def raw(
    name: str, *parts: str | RgbImage, read: RawPrompt | None = None, sampling: Sampling | None = None
) -> GenerationRequest:
    return replace(a_request(name, *parts, sampling=sampling), raw=read or RawPrompt())


def in_format(kind: Literal["regex", "json_schema", "json_object", "choice"], spec: str) -> Sampling:
    return Sampling(output_format=OutputFormat(kind, spec))


async def chunks_of(engine: Generator, request: GenerationRequest) -> list[Chunk]:
    async with aclosing(stream(engine, request)) as chunks:
        return [chunk async for chunk in chunks]


def text_of(chunks: Sequence[Chunk], index: int = 0) -> str:
    return "".join(chunk.text for chunk in chunks if chunk.index == index)


async def texts_of(engine: Generator, requests: Sequence[GenerationRequest]) -> list[str]:
    return [text_of(chunks) for chunks in await asyncio.gather(*(chunks_of(engine, one) for one in requests))]


def drawn(count: int, seed: int = 0) -> list[RgbImage]:
    rng = random.Random(f"parity/{seed}")
    images = [render(random_split_scene(rng, held_out=True), rng).convert("RGB") for _ in range(count)]
    return [RgbImage(one.width, one.height, one.tobytes()) for one in images]


async def test_it_tells_how_many_it_runs_at_once(engine: "VllmEngine") -> None:
    assert engine.num_at_once == ENGINE_ARGS["max_num_seqs"]


async def test_both_engines_caption_alike(engine: "VllmEngine") -> None:
    """Greedy captions in float32, every image in flight at once, are the same words on both engines."""
    other = TransformersEngine(ModelConfig(source="demo", engine="transformers", dtype="float32", max_batch_size=32))
    await other.start()
    prompts = list(STYLE_PROMPTS.values())
    requests = [
        a_request(f"parity-{index}", image, prompts[index % len(prompts)])
        for index, image in enumerate(drawn(NUM_PARITY_IMAGES))
    ]
    ours = await asyncio.gather(*(chunks_of(engine, request) for request in requests))
    theirs = await asyncio.gather(*(chunks_of(other, request) for request in requests))
    await other.stop()
    different = [
        (text_of(one), text_of(two)) for one, two in zip(ours, theirs, strict=True) if text_of(one) != text_of(two)
    ]
    assert not different
    assert [one[-1].num_prompt_tokens for one in ours] == [one[-1].num_prompt_tokens for one in theirs]


async def test_short_prompts_are_rendered_at_once_and_the_rest_in_a_thread(
    engine: "VllmEngine", monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve_app.engines.vllm import prompt, short_prompts

    model = engine._model
    assert model is not None
    kind = type(model.renderer.renderer.get_tokenizer())
    encode, is_here = kind.__call__, []

    def noted(*args: Any, **options: Any) -> Any:
        is_here.append(threading.current_thread() is threading.main_thread())
        return encode(*args, **options)

    async def ids_of(request: GenerationRequest) -> tuple[list[int], list[bool]]:
        is_here.clear()
        _, rendered = await prompt.render(request, model)
        return rendered["prompt_token_ids"], list(is_here)

    monkeypatch.setattr(kind, "__call__", noted)
    several = replace(
        a_request("turns", "And the square?"),
        messages=tuple(Message(role, (Text(f"{role} speaks"),)) for role in ("system", "user", "assistant", "user")),
    )
    short = [a_request("short", "What is <image> <s>?"), several, raw("raw", "Once upon a time")]
    long = a_request("long", "What is this? " * 100, *(["word "] * 800))
    for request in short:
        here, threads = await ids_of(request)
        assert threads
        assert all(threads)
        with monkeypatch.context() as changed:
            changed.setattr(short_prompts, "_SHORT_CHARACTERS", -1)
            in_thread, threads = await ids_of(request)
        assert threads
        assert not any(threads)
        assert here == in_thread
    assert not any((await ids_of(long))[1])
    is_free = threading.Event()
    busy = model.renderer.renderer._executor.submit(is_free.wait, 20)  # vLLM would copy a tokenizer that is in use
    asyncio.get_running_loop().call_later(0.1, is_free.set)
    assert not any((await ids_of(short[0]))[1])
    assert busy.result()
    many = replace(several, messages=several.messages * 30)
    assert not any((await ids_of(many))[1])


async def test_prompts_that_come_together_leave_the_loop_to_others_between_them(engine: "VllmEngine") -> None:
    from serve_app.engines.vllm import prompt

    model = engine._model
    assert model is not None
    num_rendered, seen = 0, []

    async def render_one(number: int) -> None:
        nonlocal num_rendered
        await prompt.render(a_request(f"together {number}", "Hello"), model)
        num_rendered += 1

    async def look() -> None:
        while num_rendered < 40:
            seen.append(num_rendered)
            await asyncio.sleep(0)

    await asyncio.gather(look(), *(render_one(number) for number in range(40)))
    assert max(later - earlier for earlier, later in pairwise(seen)) <= 8


async def test_both_engines_read_raw_prompts_alike(engine: "VllmEngine") -> None:
    """Texts, images in their places, token ids and cut prompts: the same tokens in, and the same out."""
    other = TransformersEngine(ModelConfig(source="demo", engine="transformers", dtype="float32"))
    await other.start()
    one, two = drawn(2, seed=7)
    sampling = Sampling(temperature=0.0, max_tokens=24, num_logprobs=1)
    template = "<|im_start|>User:\n{}<end_of_utterance>\nAssistant:\n"
    begin, end = template.split("{}")
    told = await engine.tokenize(raw("tokens", template.format("Who are you?")))
    requests = [
        raw("text", template.format("Who are you?")),
        raw("bare", "a red circle and  "),
        raw("image", begin, one, "What is in this picture?" + end),
        raw("images", one, " and ", two, "\n"),
        raw("cut", "many words before it " * 500 + template.format("Who are you?"), read=RawPrompt(last_tokens=40)),
        raw("ids", "", read=RawPrompt(tokens=tuple(token.id for token in told.tokens))),
        raw("kept", template.format("Who are you?"), sampling=replace(sampling, stop=("demo",), keeps_stop=True)),
    ]
    for request in requests:
        request = request if request.sampling.stop else replace(request, sampling=sampling)
        ours, theirs = [await chunks_of(each, request) for each in (engine, other)]
        assert text_of(ours) == text_of(theirs), request.id
        assert ours[0].num_prompt_tokens == theirs[0].num_prompt_tokens, request.id
        ids, their_ids = [[(t.id, t.is_special) for c in chunks for t in c.logprobs] for chunks in (ours, theirs)]
        assert ids == their_ids, request.id
        assert [c.stopped_by for c in ours if c.finish_reason] == [c.stopped_by for c in theirs if c.finish_reason]
    assert text_of(ours).endswith("demo")
    for asked in (requests[0], requests[1], a_request("chat", "Who are you?")):
        assert await engine.tokenize(asked) == await other.tokenize(asked)
    await other.stop()


async def test_a_bad_raw_prompt_is_the_clients(engine: "VllmEngine") -> None:
    wrong = {
        "long": raw("long", "word " * 5000),
        "id": raw("id", "", read=RawPrompt(tokens=(5, 10_000_000))),
    }
    for name, request in wrong.items():
        with pytest.raises(RequestError) as told:
            await chunks_of(engine, request)
        assert told.value.status == 400, name
    with pytest.raises(RequestError):
        await engine.tokenize(raw("image", *drawn(1)))
    assert text_of(await chunks_of(engine, a_request("after", "Who are you?")))


async def test_the_first_chunk_tells_the_wait_and_the_last_one_the_reason(engine: "VllmEngine") -> None:
    chunks = await chunks_of(engine, a_request("shape", "Who are you?"))
    assert chunks[0].queue_s is not None
    assert all(chunk.queue_s is None for chunk in chunks[1:])
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "stop"
    cut = await chunks_of(engine, a_request("cut", "Who are you?", sampling=Sampling(max_tokens=3, temperature=0)))
    assert cut[-1].finish_reason == "length"
    assert sum(chunk.num_tokens for chunk in cut) == 3


async def test_stop_strings_seeds_and_several_answers(engine: "VllmEngine") -> None:
    whole = text_of(await chunks_of(engine, a_request("whole", "Who are you?")))
    stopped = a_request("stopped", "Who are you?", sampling=Sampling(temperature=0, stop=(whole[10:14],)))
    assert text_of(await chunks_of(engine, stopped)) == whole[:10]
    sampling = Sampling(temperature=2.0, seed=5, num_answers=3, max_tokens=20)
    first, again = [
        await chunks_of(engine, a_request(f"several-{turn}", "Tell me a story.", sampling=sampling))
        for turn in (1, 2)
    ]
    texts = [text_of(first, index) for index in range(3)]
    assert len(set(texts)) == 3, texts
    assert texts == [text_of(again, index) for index in range(3)]
    assert sorted(chunk.index for chunk in first if chunk.finish_reason) == [0, 1, 2]


async def test_logprobs_come_with_every_token(engine: "VllmEngine") -> None:
    sampling = Sampling(temperature=0, num_logprobs=2, max_tokens=8)
    chunks = await chunks_of(engine, a_request("logprobs", "Who are you?", sampling=sampling))
    found = [one for chunk in chunks for one in chunk.logprobs]
    assert len(found) == sum(chunk.num_tokens for chunk in chunks)
    for one in found:
        assert one.logprob <= 0
        assert len(one.top) == 2
        assert one.top[0].logprob == one.logprob  # greedy: the chosen token is the likeliest
    assert "".join(one.token for one in found).startswith(text_of(chunks)[:5])


@pytest.mark.parametrize(
    ("output_format", "is_right"),
    [
        (OutputFormat("choice", '["tomato", "potato"]'), lambda text: text in ("tomato", "potato")),
        (OutputFormat("regex", r"[0-9]{2}:[0-9]{2}"), lambda text: len(text) == 5 and text[2] == ":"),
        (OutputFormat("json_schema", WEATHER.parameters), lambda text: json.loads(text)["city"] in ("Rome", "Oslo")),
    ],
)  # fmt: skip
async def test_an_output_format_binds(engine: "VllmEngine", output_format: OutputFormat, is_right: object) -> None:
    sampling = Sampling(temperature=1.0, seed=1, output_format=output_format, max_tokens=200)
    chunks = await chunks_of(engine, a_request(f"format-{output_format.kind}", "Hello", sampling=sampling))
    assert is_right(text_of(chunks)), text_of(chunks)  # type: ignore[operator]  # a lambda among the parameters


@pytest.mark.parametrize("choice", ["weather", "required"])
async def test_a_forced_tool_is_called_and_its_arguments_end(engine: "VllmEngine", choice: str) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": json.loads(WEATHER.parameters)}}
    chat = {"messages": [{"role": "user", "content": "a"}], "tools": [tool], "tool_choice": choice}
    tools = validate(chat, ChatBody, strict=True).tool_use()
    sampling = Sampling(temperature=0, max_tokens=120)
    chunks = await chunks_of(engine, a_request(choice, "How is the weather?", sampling=sampling, tools=tools))
    deltas = [delta for chunk in chunks for delta in chunk.tool_calls]
    assert deltas[0].name == "weather"
    assert deltas[0].id
    assert json.loads("".join(delta.arguments for delta in deltas))["city"] in ("Rome", "Oslo")


GUIDES = {  # of TGI's guide to guided generation: a model may write its texts and lists for ever
    "location": {"type": "string"},
    "activity": {"type": "string"},
    "animals_seen": {"type": "integer", "minimum": 1, "maximum": 5},
    "animals": {"type": "array", "items": {"type": "string"}},
}


async def test_formats_are_kept_end_in_time_and_stand_beside_tools(engine: "VllmEngine") -> None:
    guide = {"type": "object", "properties": GUIDES, "required": list(GUIDES)}
    schemas = KEPT | {"the guide's": guide}
    asked = [
        a_request(
            f"kept {name}", "Ride", sampling=replace(in_format("json_schema", json.dumps(schema)), max_tokens=100)
        )
        for name, schema in schemas.items()
    ]
    # xgrammar's, in their midst
    asked.insert(1, a_request("call", "Weather?", tools=ToolUse((WEATHER,), "required")))
    asked.append(a_request("any", "Ride", sampling=replace(in_format("json_object", ""), max_tokens=40)))
    answers = await asyncio.gather(*(chunks_of(engine, one) for one in asked))
    called = answers.pop(1)
    arguments = "".join(call.arguments for chunk in called for call in chunk.tool_calls)
    assert json.loads(arguments)["city"] in ("Rome", "Oslo")
    for schema, chunks in zip([*schemas.values(), {"type": "object"}], answers, strict=True):
        jsonschema.validate(json.loads(text_of(chunks)), schema)


async def test_what_no_grammar_keeps_is_refused_before_the_core_sees_it(engine: "VllmEngine") -> None:
    for name, (schema, named) in REFUSED.items():
        with pytest.raises(InvalidRequest) as refused:
            await chunks_of(engine, a_request(name, "Hi", sampling=in_format("json_schema", json.dumps(schema))))
        assert named in refused.value.message


async def test_a_token_that_holds_a_part_of_a_character_tells_its_own_bytes(engine: "VllmEngine") -> None:
    form = replace(in_format("choice", json.dumps(["開心"])), num_logprobs=2, max_tokens=20)
    told = [
        one
        for chunk in await chunks_of(engine, a_request("bytes", "Say it", sampling=form))
        for one in chunk.logprobs
    ]
    assert b"".join(one.utf8 for one in told if not one.is_special).decode() == "開心"
    assert len(told) > 3


@pytest.mark.parametrize(
    ("request_", "error", "sentence"),
    [
        (a_request("b1", "word " * 3000), ContextTooLong, "2048"),
        (a_request("b5", "a " * 2_000_000), ContextTooLong, "4,000,000 characters"),
        (a_request("b2", "Hi", sampling=Sampling(max_tokens=5000)), ContextTooLong, "5000"),
        (a_request("b3", "Hi", sampling=in_format("regex", "[a")), InvalidRequest, "regular expression"),
        (a_request("b4", "Hi", sampling=in_format("json_schema", '{"type": 5}')), InvalidRequest, "type"),
    ],
    ids=["long prompt", "a prompt that isn't read", "long answer", "bad regex", "bad schema"],
)  # fmt: skip
async def test_a_bad_request_is_the_clients_and_the_engine_lives(
    engine: "VllmEngine", request_: GenerationRequest, error: type[RequestError], sentence: str
) -> None:
    with pytest.raises(error) as raised:
        await chunks_of(engine, request_)
    assert sentence in raised.value.message
    assert "demo" in text_of(await chunks_of(engine, a_request("after", "Who are you?")))


async def test_a_deadline_ends_the_work(engine: "VllmEngine") -> None:
    endless = Sampling(ignores_eos=True, max_tokens=1900)
    with pytest.raises(DeadlineExceeded):
        await chunks_of(engine, a_request("late", "Hi", sampling=endless, timeout_s=0.5))
    await until_idle(engine)


async def test_leaving_aborts_the_request(engine: "VllmEngine") -> None:
    endless = Sampling(ignores_eos=True, max_tokens=1900)
    async with aclosing(stream(engine, a_request("left", "Hi", sampling=endless))) as chunks:
        await anext(chunks)
    await until_idle(engine)


async def test_an_answer_that_nobody_reads_along_comes_in_two_chunks(engine: "VllmEngine") -> None:
    sampling = Sampling(temperature=0, max_tokens=12, num_logprobs=2, ignores_eos=True)
    streamed = await chunks_of(engine, a_request("along", "Who are you?", sampling=sampling))
    whole = await chunks_of(engine, replace(a_request("whole", "Who are you?", sampling=sampling), is_streamed=False))
    assert [chunk.num_tokens for chunk in whole] == [1, 11]
    assert whole[0].queue_s is not None
    assert text_of(whole) == text_of(streamed)
    assert [one.token for chunk in whole for one in chunk.logprobs] == [
        one.token for chunk in streamed for one in chunk.logprobs
    ]
    several = Sampling(temperature=2.0, seed=5, num_answers=3, max_tokens=20, stop=("xyz",))
    request_ = a_request("several", "Tell me a story.", sampling=several)
    along, at_once = await chunks_of(engine, request_), await chunks_of(engine, replace(request_, is_streamed=False))
    assert [text_of(at_once, index) for index in range(3)] == [text_of(along, index) for index in range(3)]


async def test_tokens_kept_back_are_counted_when_the_request_is_late(engine: "VllmEngine") -> None:
    endless = Sampling(ignores_eos=True, max_tokens=1900)
    late = replace(a_request("late", "Hi", sampling=endless, timeout_s=1.0), is_streamed=False)
    chunks: list[Chunk] = []
    with pytest.raises(DeadlineExceeded):
        await engine.generate(late, chunks.append)
    assert [chunk.finish_reason for chunk in chunks] == [None, None]
    assert chunks[0].num_tokens == 1
    assert chunks[1].num_tokens > 1
    await until_idle(engine)


async def test_speculation_changes_no_word(engine: "VllmEngine") -> None:
    """Drafts out of the prompt's and the answer's own words: some are taken, and the text is the one without."""
    asked = [
        a_request(f"speculated-{index}", image, STYLE_PROMPTS["detailed"])
        for index, image in enumerate(drawn(12, seed=1))
    ]
    plain = await texts_of(engine, asked)
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
    async with another("demo", speculative_config=drafts) as speculating:
        found = await asyncio.gather(*(chunks_of(speculating, request) for request in asked))
    assert [text_of(chunks) for chunks in found] == plain
    assert max(chunk.num_tokens for chunks in found for chunk in chunks) > 1  # a draft was taken


async def test_int8_weights_answer_as_the_whole_ones_do(engine: "VllmEngine", tmp_path: Path) -> None:
    """The quantization that most CPUs run as well: compressed-tensors' W8A8."""
    has_amx = bool(torch.cpu.get_capabilities().get("amx_int8"))
    dtype: Literal["float32", "bfloat16"] = "bfloat16" if has_amx else "float32"  # vLLM's kernel with AMX wants it
    asked = [
        a_request(f"int8-{index}", image, STYLE_PROMPTS["short"]) for index, image in enumerate(drawn(20, seed=2))
    ]
    whole = await texts_of(engine, asked)
    async with another(str(build_int8_demo(tmp_path / "int8")), dtype) as quantized:
        assert quantized._model is not None
        assert quantized._model.llm.model_config.quantization == "compressed-tensors"
        found = await texts_of(quantized, asked)
    num_alike = sum(one == other for one, other in zip(found, whole, strict=True))
    assert num_alike >= 0.8 * len(asked), list(zip(found, whole, strict=True))  # bytes round the weights


@asynccontextmanager
async def another(
    source: str, dtype: Literal["float32", "bfloat16"] = "float32", **engine_args: Any
) -> AsyncIterator["VllmEngine"]:
    from serve_app.engines.vllm.engine import VllmEngine

    arguments = {"enforce_eager": True, "max_num_seqs": 8, **engine_args}
    started = VllmEngine(ModelConfig(source=source, engine="vllm", dtype=dtype, engine_args=arguments))
    await started.start()
    try:
        yield started
    finally:
        await started.stop()


async def until_idle(engine: "VllmEngine") -> None:
    assert engine._model is not None
    deadline = asyncio.get_running_loop().time() + 30
    while engine._model.llm.output_processor.has_unfinished_requests():
        assert asyncio.get_running_loop().time() < deadline, "the request still runs"
        await asyncio.sleep(0.05)

"""A vLLM model with a LoRA adapter and a transformers model behind one address, on a real Ray cluster."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.drawings import data_uri, png
from tests.mixed_load import mixed_request
from tests.service import RunningService, serving
from tests.vllm_models import (
    ENGINE_ARGS,
    ENVIRONMENT,
    RECITER_WIDTH,
    build_adapter,
    build_endless,
    build_reciter,
    starts_vllm,
)

pytestmark = [*starts_vllm, pytest.mark.cluster, pytest.mark.timeout(600)]

RECOVERY_S = 300.0  # generous: how long it takes isn't what is tested

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


NAMES = ("on-vllm", "on-transformers", "thinker", "misfit", "endless", "uneven")
RECITED = (
    "<think>", "Is it Rome?", " Yes.", "</think>", "Let me look.",
    "<tool_call>", '\n{"name": "weather", "arguments": {"city": "Rome"}}\n', "</tool_call>",
)  # fmt: skip


def model(name: str, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "import_path": "serve_app.app:build_model", "route_prefix": None, "args": args}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    adapter = build_adapter(tmp_path_factory.mktemp("adapter"))
    foreign = build_adapter(tmp_path_factory.mktemp("foreign"), width=64)
    reciter = build_reciter(tmp_path_factory.mktemp("reciter"), RECITED)
    endless = build_endless(tmp_path_factory.mktemp("endless"))
    on_vllm = {"source": "demo", "engine": "vllm", "num_cpus": 0.2, "env": ENVIRONMENT, "engine_args": ENGINE_ARGS}
    once = on_vllm | {"start_attempts": 1}
    dreaming = build_adapter(tmp_path_factory.mktemp("dreaming"), model="model", num_layers=1, width=RECITER_WIDTH)
    thinking = {
        "source": str(reciter),
        "engine_args": {**ENGINE_ARGS, "reasoning_parser": "deepseek_r1"},
        "adapters": {"dreamer": str(dreaming)},
        "autoscaling": {"min_replicas": 0},
    }
    config = {
        "applications": [
            model("on-vllm", {**on_vllm, "adapters": {"tuned": str(adapter)}}),
            model("on-transformers", {"source": "demo", "engine": "transformers", "num_cpus": 0.2}),
            model("thinker", {**on_vllm, **thinking}),
            model("misfit", {**once, "adapters": {"foreign": str(foreign)}}),
            model("endless", {**once, "source": str(endless)}),
            model("uneven", {**once, "source": str(endless), "tensor_parallel_size": 3}),
            {
                "name": "ingress",
                "import_path": "serve_app.app:build_ingress",
                "route_prefix": "/",
                "args": {"num_cpus": 0.1, "request_timeout_s": RECOVERY_S},
                "deployments": [
                    {
                        "name": "Ingress",
                        "user_config": {"models": [*NAMES, "tuned", "dreamer", "nobody"]},
                    }
                ],
            },
            {"name": "metrics", "import_path": "serve_app.app:build_metrics", "route_prefix": "/metrics", "args": {}},
        ],
    }
    with serving(config) as running:
        yield running


def models_of(service: RunningService) -> dict[str, dict[str, Any]]:
    with service.client as client:
        return {entry["id"]: entry for entry in client.get("/v1/models").json()["data"]}


def test_the_models_say_what_they_run_on(service: RunningService) -> None:
    deadline = time.monotonic() + 30
    while (models := models_of(service))["tuned"]["state"] != "ready" and time.monotonic() < deadline:
        time.sleep(0.5)
    assert models["on-vllm"]["engine"] == "vllm"
    assert models["on-transformers"]["engine"] == "transformers"
    assert models["on-vllm"]["context_length"] == models["on-transformers"]["context_length"] == 2048
    assert (models["tuned"]["state"], models["tuned"]["parent"]) == ("ready", "on-vllm")
    assert (models["dreamer"]["state"], models["dreamer"]["parent"]) == ("scaled_to_zero", "thinker")
    assert models["nobody"]["state"] == "pending"
    assert "adapter of that name" in models["nobody"]["reason"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("misfit", "adapter 'foreign'.*trained on this base"),
        ("endless", "KV cache is needed.*`max_model_len`"),
        ("uneven", "2 attention heads, which 3 ranks can't share"),
    ],
)
def test_what_vllm_can_not_start_fails_alone_and_says_why(service: RunningService, name: str, sentence: str) -> None:
    deadline = time.monotonic() + RECOVERY_S
    while (told := models_of(service)[name])["state"] in ("loading", "pending") and time.monotonic() < deadline:
        time.sleep(0.5)
    assert told["state"] == "failed"
    assert re.search(f"^model '{name}': .*{sentence}", told["reason"]), told["reason"]


def test_a_sleeping_model_is_woken_by_its_adapters_name(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model="dreamer", messages=[{"role": "user", "content": "Rome?"}], temperature=0, timeout=RECOVERY_S
    )
    assert answer.model == "dreamer"
    assert (answer.choices[0].message.content or "").startswith("Let me look.")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_thinking_and_a_call_of_its_own_accord_come_apart(openai_client: openai.OpenAI, is_streamed: bool) -> None:
    asked: Any = {"model": "thinker", "messages": [{"role": "user", "content": "Rome?"}], "temperature": 0}
    asked |= {"tools": [WEATHER], "tool_choice": "auto"}
    if is_streamed:
        events = list(openai_client.chat.completions.create(**asked, stream=True))
        deltas = [event.choices[0].delta for event in events]
        thought = "".join((delta.model_extra or {}).get("reasoning", "") for delta in deltas)
        text = "".join(delta.content or "" for delta in deltas)
        calls = [call.function for delta in deltas for call in delta.tool_calls or ()]
        called = "".join(call.name or "" for call in calls), "".join(call.arguments or "" for call in calls)
        finish_reason = events[-1].choices[0].finish_reason
    else:
        (choice,) = openai_client.chat.completions.create(**asked).choices
        thought, text = (choice.message.model_extra or {})["reasoning"], choice.message.content
        assert choice.message.tool_calls is not None
        (call,) = choice.message.tool_calls
        assert call.type == "function"
        called, finish_reason = (call.function.name, call.function.arguments), choice.finish_reason
    assert (thought, text, finish_reason) == ("Is it Rome? Yes.", "Let me look.", "tool_calls")
    assert (called[0], json.loads(called[1])) == ("weather", {"city": "Rome"})


def test_what_was_asked_before_is_read_from_the_cache(openai_client: openai.OpenAI) -> None:
    """Blocks of the prompt, and those of an image only where the image is the same."""

    def num_cached(color: str) -> int:
        image = {"type": "image_url", "image_url": {"url": data_uri(png(color, "square"))}}
        question = {"type": "text", "text": "How many squares are there? " * 60}
        usage = openai_client.chat.completions.create(
            model="on-vllm", messages=[{"role": "user", "content": [image, question]}], max_tokens=5
        ).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        assert (usage.prompt_tokens_details.cached_tokens or 0) < usage.prompt_tokens
        return usage.prompt_tokens_details.cached_tokens or 0

    first, again, other = num_cached("yellow"), num_cached("yellow"), num_cached("green")
    assert first == 0
    assert again > 100
    assert other < 32, "no more than what stands before the image"


def test_an_adapter_changes_answers_and_only_its_own(openai_client: openai.OpenAI) -> None:
    def ask(name: str) -> str:
        answer = openai_client.chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Who are you?"}], temperature=0, max_tokens=30
        )
        assert answer.model == name
        return answer.choices[0].message.content or ""

    before, tuned, after = ask("on-vllm"), ask("tuned"), ask("on-vllm")
    assert "demo" in before
    assert before == after
    assert tuned != before


async def test_both_engines_answer_rightly_under_mixed_load(service: RunningService) -> None:
    names = ("on-vllm", "on-transformers")
    async with httpx.AsyncClient(base_url=service.url, timeout=240, trust_env=False) as client:
        outcomes = await asyncio.gather(
            *(mixed_request(client, number, name, echo_model=None) for number in range(32) for name in names)
        )
    assert [outcome for outcome in outcomes if outcome != "right"] == []


def test_a_stream_says_the_same_as_an_answer(openai_client: openai.OpenAI) -> None:
    image = {"type": "image_url", "image_url": {"url": data_uri(png("green", "triangle"))}}
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "Describe this picture in detail."}, image]}
    ]
    whole = openai_client.chat.completions.create(model="on-vllm", messages=messages, temperature=0)
    events = list(
        openai_client.chat.completions.create(
            model="on-vllm", messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == whole.choices[0].message.content
    assert "triangle" in text
    assert events[-1].usage == whole.usage


def test_openais_fields_reach_vllm(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model="on-vllm",
        messages=[{"role": "user", "content": "Hi"}],
        n=2,
        logprobs=True,
        top_logprobs=3,
        max_tokens=4,
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert len(choice.logprobs.content) == 4
        assert len(choice.logprobs.content[0].top_logprobs) == 3
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


def test_formats_bind_through_http(openai_client: openai.OpenAI) -> None:
    schema = WEATHER["function"]["parameters"]  # type: ignore[index]  # a value of many kinds
    answer = openai_client.chat.completions.create(
        model="on-vllm", messages=[{"role": "user", "content": "Hi"}], max_tokens=200,
        response_format={"type": "json_schema", "json_schema": {"name": "weather", "schema": schema}},
    )  # fmt: skip
    assert json.loads(answer.choices[0].message.content or "")["city"] in ("Rome", "Oslo")
    answer = openai_client.chat.completions.create(
        model="on-vllm", messages=[{"role": "user", "content": "Hi"}],
        extra_body={"structured_outputs": {"choice": ["tomato"]}},
    )  # fmt: skip
    assert answer.choices[0].message.content == "tomato"


@pytest.mark.client("openai-python", "tools", on="vLLM")
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_tool_is_called_and_answered(openai_client: openai.OpenAI, is_streamed: bool) -> None:
    messages: Any = [{"role": "user", "content": "How is the weather?"}]
    choice: Any = {"type": "function", "function": {"name": "weather"}}
    sampling: Any = {"temperature": 0, "frequency_penalty": 2}  # else a model of this size writes blanks for ever
    tools: Any = [WEATHER]
    if is_streamed:
        events = list(
            openai_client.chat.completions.create(
                model="on-vllm", messages=messages, tools=tools, tool_choice=choice, stream=True, **sampling
            )
        )
        deltas = [call for event in events for call in event.choices[0].delta.tool_calls or ()]
        name, call_id = deltas[0].function.name, deltas[0].id
        arguments = "".join(delta.function.arguments or "" for delta in deltas if delta.function)
    else:
        answer = openai_client.chat.completions.create(
            model="on-vllm", messages=messages, tools=tools, tool_choice=choice, **sampling
        )
        calls = answer.choices[0].message.tool_calls
        assert calls is not None
        (call,) = calls
        assert call.type == "function"
        name, call_id, arguments = call.function.name, call.id, call.function.arguments
    assert name == "weather"
    assert json.loads(arguments)["city"] in ("Rome", "Oslo")
    turn = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [turn]},
        {"role": "tool", "tool_call_id": call_id, "content": "sunny"},
    ]
    final = openai_client.chat.completions.create(model="on-vllm", messages=messages, tools=tools, tool_choice="none")
    assert final.choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"structured_outputs": {"regex": "[a"}}, "regular expression"),
        ({"max_tokens": 100000}, "2048"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "2048"),
    ],
)
def test_a_bad_request_is_a_400_that_names_the_fault(
    service: RunningService, fields: dict[str, Any], sentence: str
) -> None:
    body = {"model": "on-vllm", "messages": [{"role": "user", "content": "Hi"}]} | fields
    with service.client as client:
        answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]["message"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("killed", ["engine core", "replica"])
def test_what_dies_is_replaced_and_leaves_nothing(service: RunningService, killed: str) -> None:
    """Last, because it kills: vLLM's own process, then the replica that started it. A new pair comes each time."""
    (core,) = cores_of(service)
    victim = core if killed == "engine core" else core.parent()
    assert victim is not None
    victim.kill()
    body = {"model": "on-vllm", "messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0}
    answer = httpx.post(f"{service.url}/v1/chat/completions", json=body, timeout=RECOVERY_S, trust_env=False)
    assert answer.status_code == 200, answer.text  # it had no output yet: the new pair answers
    assert "demo" in answer.json()["choices"][0]["message"]["content"]
    assert core not in cores_of(service)
    assert len(cores_of(service)) == 1


def cores_of(service: RunningService) -> list[psutil.Process]:
    """The engine cores of 'on-vllm', told from others by their environment and by the replica that started them."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "EngineCore" not in process.name() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            parent, is_ours = process.parent(), process.environ().get("RAY_TMPDIR") == str(service.temp_dir)
            if is_ours and parent is not None and ":on-vllm:" in " ".join(parent.cmdline()):
                found.append(process)
    return found

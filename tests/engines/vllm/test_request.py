"""What models say, told apart by vLLM's own parsers: thinking, text and calls. No engine is started."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from serve_app.errors import EngineFailed
from serve_app.messages import Chunk, GenerationRequest, Message, Sampling, Text, Tool, ToolUse
from tests.tiny_models import tokenizer
from tests.vllm_models import needs_vllm

pytestmark = [needs_vllm, pytest.mark.engine, pytest.mark.filterwarnings("default")]

NAMED = {name: name for name in ("<think>", "</think>", "<tool_call>", "</tool_call>")}
WEATHER = ToolUse((Tool("weather", '{"type": "object", "properties": {"city": {"type": "string"}}}'),))


def said(text: str, tools: ToolUse | None = None, *, finish_reason: str = "stop") -> list[Chunk]:
    """The chunks of an answer that comes one token a step."""
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.parser import ParserManager

    from serve_app.engines.vllm.request import Answers, chat_request

    tokens = tokenizer(named=NAMED)
    chat = chat_request(GenerationRequest("a", "m", (Message("user", (Text("Hi"),)),), Sampling(), 60, tools))
    make: Any = ParserManager.get_parser(
        tool_parser_name="hermes", reasoning_parser_name="deepseek_r1", enable_auto_tools=True, tokenizer=tokens
    )
    parser = make(tokens, chat.tools, chat_template_kwargs={}, model_config=None)
    answers = Answers(chat, [parser], 5, frozenset())
    ids = tokens.encode(text, add_special_tokens=False)
    chunks: list[Chunk] = []
    for number, token in enumerate(ids, 1):
        finish = finish_reason if number == len(ids) else None
        output = CompletionOutput(0, tokens.decode([token]), [token], None, None, finish_reason=finish)
        step = RequestOutput("a", None, [1] * 5, None, [output], finished=finish is not None)
        chunks += answers.chunks(step)
    return chunks


def text_of(chunks: Sequence[Chunk]) -> tuple[str, str]:
    return "".join(chunk.reasoning for chunk in chunks), "".join(chunk.text for chunk in chunks)


def test_thinking_comes_apart_from_the_answer() -> None:
    chunks = said("<think>Is it red? Yes.</think>It is red.")
    assert text_of(chunks) == ("Is it red? Yes.", "It is red.")
    assert chunks[-1].finish_reason == "stop"


def test_a_call_in_the_text_becomes_a_call() -> None:
    call = json.dumps({"name": "weather", "arguments": {"city": "Rome"}})
    chunks = said(f"<think>hm</think>Let me look.<tool_call>\n{call}\n</tool_call>", WEATHER)
    deltas = [delta for chunk in chunks for delta in chunk.tool_calls]
    assert (deltas[0].name, bool(deltas[0].id), deltas[0].index) == ("weather", True, 0)
    assert json.loads("".join(delta.arguments for delta in deltas)) == {"city": "Rome"}
    assert text_of(chunks) == ("hm", "Let me look.")
    assert chunks[-1].finish_reason == "tool_calls"
    assert len({delta.id for delta in deltas if delta.id}) == 1


def test_every_token_is_counted_even_where_a_parser_keeps_it() -> None:
    text = "<think>a</think>b"
    chunks = said(text)
    assert sum(chunk.num_tokens for chunk in chunks) == len(tokenizer(named=NAMED).encode(text))
    assert all(chunk.num_prompt_tokens == 5 for chunk in chunks)


def test_an_answer_that_vllm_gives_up_is_an_error() -> None:
    with pytest.raises(EngineFailed):
        said("abc", finish_reason="abort")


def test_one_call_where_calls_may_not_be_parallel() -> None:
    call = json.dumps({"name": "weather", "arguments": {"city": "Rome"}})
    text = "<think></think>" + f"<tool_call>\n{call}\n</tool_call>" * 2
    both = said(text, WEATHER)
    one = said(text, ToolUse(WEATHER.tools, is_parallel=False))
    assert {delta.index for chunk in both for delta in chunk.tool_calls} == {0, 1}
    assert {delta.index for chunk in one for delta in chunk.tool_calls} == {0}


def test_variables_of_the_chat_template_go_to_vllm_under_its_name() -> None:
    from serve_app.engines.vllm.request import chat_request

    message = Message("user", (Text("Hi"),))
    chat = GenerationRequest("a", "m", (message,), Sampling(), 60, template_args='{"enable_thinking": false}')
    assert chat_request(chat).chat_template_kwargs == {"enable_thinking": False}
    assert chat_request(GenerationRequest("a", "m", (message,), Sampling(), 60)).chat_template_kwargs is None

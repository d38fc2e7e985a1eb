"""A text that no context holds is refused before it is tokenized, and holds nobody up."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from serve_app.config.applications import ModelConfig
from serve_app.config.http import HttpConfig
from serve_app.engines.text import bound as text_bound
from serve_app.engines.text.bound import TextBound
from serve_app.errors import ContextTooLong
from serve_app.messages import GenerationRequest, Message, RawPrompt, Text, Tool, ToolCall, ToolUse
from tests import own_lane, tiny_models
from tests.own_lane import bearer
from tests.tiny_engine import answer, request, started

CONTEXT = 1000


class Reader:
    """A tokenizer that notes how many characters it was given."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.num_characters = 0
        self.backend_tokenizer = self

    @property
    def normalizer(self) -> Any:
        return self._inner.backend_tokenizer.normalizer

    def get_vocab(self) -> dict[str, int]:
        return dict(self._inner.get_vocab())

    def encode_batch_fast(self, texts: list[str], **how: Any) -> Any:
        self.num_characters += sum(map(len, texts))
        return self._inner.backend_tokenizer.encode_batch_fast(texts, **how)


def raw(text: str, **more: Any) -> GenerationRequest:
    return replace(request(text), raw=RawPrompt(**more))


def a_call(call: ToolCall, answers: str | None = None) -> GenerationRequest:
    turns = (Message("assistant", (), (call,) * 100), Message("tool", (Text("x"),), tool_call_id=answers))
    return replace(request("x"), messages=(*request("x").messages, *turns))


def a_tool(text: str) -> GenerationRequest:
    return replace(request("x"), tool_use=ToolUse((Tool("f", "{}", description=text),)))


@pytest.mark.parametrize(
    "asked",
    [
        request("a " * 2_000_000),
        replace(request("x"), messages=(Message("user", (Text("word "),) * 800_000),)),
        replace(request("x"), messages=(Message("system", (Text("\u00e9" * 4_000_000),)), *request("x").messages)),
        raw("a" * 30_000_000),
        raw("", tokens=(5,) * 1_000_000),
        a_tool("b" * 4_000_000),
        a_call(ToolCall("a" * 60_000, "f", "{}")),
        a_call(ToolCall("a", "f" * 60_000, "{}")),
        a_call(ToolCall("a", "f", "b" * 60_000)),
        a_call(ToolCall("a", "f", "{}"), answers="a" * 4_000_000),
        replace(request("x"), tool_use=ToolUse((Tool("f" * 4_000_000, "{}"),))),
        replace(request("x"), template_args=f'{{"a": "{"a" * 4_000_000}"}}'),
    ],
    ids=[
        "regular",
        "parts",
        "another turn",
        "raw",
        "ids",
        "tools",
        "calls' ids",
        "calls' names",
        "calls' arguments",
        "answers' ids",
        "tools' names",
        "variables",
    ],
)
async def test_what_cannot_fit_is_refused_unread(asked: GenerationRequest) -> None:
    tokens = Reader(tiny_models.tokenizer())
    bound = TextBound(tokens, CONTEXT)
    with pytest.raises(ContextTooLong, match="maximum context length is 1000"):
        await bound.fitted(asked)
    assert tokens.num_characters == 0


@pytest.mark.parametrize(
    ("template", "is_printed"),
    [
        ("{{ tool_call.name }}", False),
        ("{{ '<|im_start|>' + tool_call.function | tojson }}", False),
        ("{{ call['id'] }}", True),
        ("{{ call.id }}", True),
        ("{{ message.tool_call_id }}", True),
        ("{{ message.tool_calls | tojson }}", True),
        (None, True),
    ],
)
async def test_ids_count_where_the_template_prints_them(template: str | None, is_printed: bool) -> None:
    bound = TextBound(Reader(tiny_models.tokenizer()), CONTEXT, template)
    asked = a_call(ToolCall("a" * 60_000, "f", "{}"))
    if not is_printed:
        assert await bound.fitted(asked) == asked
        return
    with pytest.raises(ContextTooLong):
        await bound.fitted(asked)


async def test_a_text_below_the_bound_is_counted_only_until_it_is_too_long() -> None:
    inner = tiny_models.tokenizer()
    inner.add_tokens(["=" * 2000])  # such tokens are common in vocabularies of 200,000
    tokens = Reader(inner)
    bound = TextBound(tokens, CONTEXT)
    with pytest.raises(ContextTooLong, match="more than 1,000 tokens"):
        await bound.fitted(request("a b " * 450_000))
    assert tokens.num_characters == text_bound._PIECE_CHARACTERS
    few = request("=" * 1_500_000)  # 750 tokens
    assert await bound.fitted(few) == few


async def test_a_text_may_be_composed_of_more_characters_than_its_tokens_have() -> None:
    bare = Tokenizer(models.BPE({"<unk>": 0, "\u00e9": 1, "a": 2}, [], unk_token="<unk>"))
    bare.normalizer = normalizers.NFC()
    bound = TextBound(PreTrainedTokenizerFast(tokenizer_object=bare, unk_token="<unk>"), 40_000)
    text = request("e\u0301" * 39_000)  # 39,000 tokens of one character, 78,000 characters
    assert await bound.fitted(text) == text


async def test_of_a_text_whose_end_is_kept_only_the_end_is_read() -> None:
    tokens = Reader(tiny_models.tokenizer())
    bound = TextBound(tokens, CONTEXT)
    text = "".join(f"{number} " for number in range(1_000_000))
    asked = await bound.fitted(raw(text, last_tokens=50))
    (kept,) = asked.messages[0].parts
    assert isinstance(kept, Text)
    assert text.endswith(kept.text)
    assert len(kept.text) == tokens.num_characters < 70_000
    assert tiny_models.tokenizer()(kept.text).input_ids[-50:] == tiny_models.tokenizer()(text[-9000:]).input_ids[-50:]


async def test_a_text_that_is_only_counted_may_be_longer_than_the_context() -> None:
    bound = TextBound(Reader(tiny_models.tokenizer()), CONTEXT)
    await bound.check_countable(raw("a " * 20_000))
    with pytest.raises(ContextTooLong):
        await bound.check_countable(raw("a " * 2_000_000))


async def test_others_are_answered_while_a_long_text_is_counted(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_counting, may_go_on = threading.Event(), threading.Event()
    count = text_bound._num_tokens

    def slow(*given: Any) -> int:
        is_counting.set()
        assert may_go_on.wait(60)
        return count(*given)

    monkeypatch.setattr(text_bound, "_num_tokens", slow)
    async with started(checkpoints["llama"]) as engine:
        engine._text_bound = TextBound(tiny_models.tokenizer(), 100_000)
        long = asyncio.create_task(answer(engine, request("a " * 20_000)))
        assert await asyncio.to_thread(is_counting.wait, 60)
        assert (await answer(engine, request("Hello")))[1] > 0
        assert not long.done()
        may_go_on.set()
        with pytest.raises(ContextTooLong):
            await long


LONG = "a " * 2_000_000
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
    "stream": ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}], "stream": True}),
    "completions": ("/v1/completions", {"prompt": LONG}),
    "echo": ("/v1/completions", {"prompt": LONG, "echo": True}),
    "many prompts": ("/v1/completions", {"prompt": ["a " * 16_000] * 128, "max_tokens": 1}),
    "generate": ("/generate", {"inputs": LONG}),
    "tokenize": ("/tokenize", {"inputs": LONG}),
    "chat_tokenize": ("/chat_tokenize", {"messages": [{"role": "user", "content": LONG}]}),
}


def test_every_dialect_says_that_the_context_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_lane, "MAX_BODY_BYTES", HttpConfig().max_body_bytes)
    model = ModelConfig(source="demo", engine="transformers")
    with (
        own_lane.own_lane(tmp_path, model) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60, headers=bearer("all")) as client,
    ):
        for name, (path, body) in BODIES.items():
            told = client.post(path, json=body)
            assert told.status_code in (400, 422), (name, told.text[:200])
            assert "context" in told.text, name
        assert client.post("/generate", json={"inputs": LONG, "parameters": {"truncate": 20}}).status_code == 200
        assert client.get("/health").status_code == 200

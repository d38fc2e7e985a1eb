"""A token that holds a part of a character tells its own bytes, in every dialect that tells log-probabilities."""

import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.applications import ModelConfig
from serve_app.dialects.openai.completion_answer import choices_json
from serve_app.engines.text.token_bytes import TokenBytes
from serve_app.messages import Chunk, TokenLogprob
from tests import tiny_models
from tests.engines.grammar.test_output_grammar import sentencepiece
from tests.own_lane import MODEL, lane_client

TEXT = "a ü開\U0001f600"


@pytest.mark.parametrize("make", [tiny_models.tokenizer, sentencepiece])
def test_a_texts_tokens_add_up_to_its_bytes(make: Any) -> None:
    tokenizer = make()
    own = TokenBytes(tokenizer)
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    parts = [own.of(token) for token in ids]
    texts = [tokenizer.decode([token]) for token in ids]
    said = [text.encode() if part is None else part for part, text in zip(parts, texts, strict=True)]
    assert b"".join(said).decode().replace(" ", "") == TEXT.replace(" ", "")
    assert len(said) > len(TEXT)
    assert own.of(tokenizer.eos_token_id) is None


def test_the_table_of_added_tokens_is_not_built_for_each_token() -> None:
    tokenizer = tiny_models.tokenizer()
    num_reads = 0

    class Counting(type(tokenizer)):  # type: ignore[misc]
        @property
        def added_tokens_decoder(self) -> dict[int, Any]:
            nonlocal num_reads
            num_reads += 1
            return dict(super().added_tokens_decoder)

    tokenizer.__class__ = Counting
    own = TokenBytes(tokenizer)
    num_reads = 0
    assert own.of(tokenizer.eos_token_id) is None
    assert all(own.of(token) for token in tokenizer(TEXT, add_special_tokens=False).input_ids)
    assert num_reads == 0


def test_completions_spell_a_part_of_a_character_as_openai_does() -> None:
    parts = [TokenLogprob("\ufffd", -1.0, own_bytes=bytes([byte])) for byte in "開".encode()]
    told = (*parts, TokenLogprob("x", -2.0))
    (choice,) = choices_json([Chunk("開x", 4, 1, "stop", logprobs=told)], 0, "")
    assert choice["logprobs"]["tokens"] == ["bytes:\\xe9", "bytes:\\x96", "bytes:\\x8b", "x"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 1]
    assert all(len(one) == 1 for one in choice["logprobs"]["top_logprobs"])


def test_a_chats_bytes_join_to_its_text(tmp_path: Path) -> None:
    with lane_client(tmp_path, ModelConfig(source="demo", engine="transformers")) as client:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Say it"}],
            "logprobs": True,
            "max_tokens": 20,
            "structured_outputs": {"choice": ["開心"]},
        }
        (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
        joined = b"".join(bytes(one["bytes"]) for one in choice["logprobs"]["content"])
        assert joined.decode() == choice["message"]["content"] == "開心"
        streamed = client.post("/v1/chat/completions", json=body | {"stream": True}).text
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    told = [one for event in events for one in (event["choices"][0]["logprobs"] or {}).get("content", [])]
    assert b"".join(bytes(one["bytes"]) for one in told).decode() == "開心"

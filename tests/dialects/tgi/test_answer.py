"""Chunks as TGI's tokens: whatever an engine puts into one chunk, the tokens' texts are the chunk's."""

import json
from typing import Any

import pytest

from serve_app.dialects.tgi.answer import AnswerStyle, TokenEvents, answer_json
from serve_app.messages import Chunk, FinishReason, TokenLogprob
from tests.tgi_page import mistakes

END = TokenLogprob("</s>", -0.1, id=2, is_special=True)


def token(text: str, number: int = 5) -> TokenLogprob:
    return TokenLogprob(text, -0.5, id=number)


def chunk(
    text: str, *tokens: TokenLogprob, finish: FinishReason | None = None, stopped_by: str | None = None
) -> Chunk:
    return Chunk(text, len(tokens), 3, finish, logprobs=tokens, stopped_by=stopped_by)


def events(*chunks: Chunk) -> list[dict[str, Any]]:
    encoder = TokenEvents(AnswerStyle(has_details=True))
    data = b"".join(encoder.encode(one) for one in chunks) + encoder.end()
    read = [json.loads(event.removeprefix("data:")) for event in data.decode().split("\n\n")[:-1]]
    assert [problem for event in read for problem in mistakes(event, "StreamResponse")] == []
    assert [event["index"] for event in read] == list(range(1, len(read) + 1))
    return read


@pytest.mark.parametrize(
    ("text", "tokens", "texts"),
    [
        ("one two", ("one", " two"), ["one", " two"]),
        ("Hello you", ("Hello", "you"), ["Hello", " you"]),  # SentencePiece alone loses the space
        (" Hello", ("Hello",), [" Hello"]),
        ("ü", ("\ufffd", "\ufffd"), ["", "ü"]),
        ("aüb", ("a", "\ufffd", "\ufffd", "b"), ["a", "", "ü", "b"]),
        ("a😀", ("a", "\ufffd", "\ufffd", "\ufffd", "\ufffd"), ["a", "", "", "", "😀"]),
        ("a\ufffd", ("a", "\ufffd"), ["a", "\ufffd"]),
        ("ab", ("a", "bc"), ["a", "b"]),  # ended by a stop string inside a token
        ("held one", ("one",), ["held one"]),
        ("", ("a",), [""]),
        ("aa", ("a", "", "a"), ["a", "", "a"]),
    ],
)
def test_tokens_say_the_chunks_text(text: str, tokens: tuple[str, ...], texts: list[str]) -> None:
    whole = chunk(text, *map(token, tokens), END, finish="stop")
    streamed = events(whole)
    assert [event["token"]["text"] for event in streamed] == [*texts, "</s>"]
    assert [event["token"]["special"] for event in streamed] == [False] * len(texts) + [True]
    assert "".join(texts) == text == streamed[-1]["generated_text"]
    answer = answer_json([whole], AnswerStyle(has_details=True))
    assert mistakes(answer, "GenerateResponse") == []
    assert [one["text"] for one in answer["details"]["tokens"]] == [*texts, "</s>"]


def test_a_text_that_comes_with_the_end_alone_is_told() -> None:
    (first, last) = events(chunk("a", token("a")), chunk("b", END, finish="stop"))
    assert (last["token"]["text"], last["token"]["special"]) == ("b", False)
    assert last["generated_text"] == "ab"
    assert first["generated_text"] is None


def test_an_end_without_a_token_is_an_event_too() -> None:
    *_, last = events(chunk("a", token("a")), chunk("", finish="length"))
    assert (last["token"]["text"], last["token"]["special"]) == ("", True)
    assert (last["generated_text"], last["details"]["finish_reason"]) == ("a", "length")
    assert last["details"]["generated_tokens"] == 1


@pytest.mark.parametrize(
    ("finish", "stopped_by", "reason"),
    [("length", None, "length"), ("stop", None, "eos_token"), ("stop", "x", "stop_sequence")],
)
def test_how_an_answer_ended(finish: FinishReason, stopped_by: str | None, reason: str) -> None:
    whole = chunk("x", token("x"), finish=finish, stopped_by=stopped_by)
    assert events(whole)[-1]["details"]["finish_reason"] == reason
    assert answer_json([whole], AnswerStyle(has_details=True))["details"]["finish_reason"] == reason

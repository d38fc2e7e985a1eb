"""LangChain and LlamaIndex against the demo model: their own libraries, in an environment of their own."""

from typing import Any

import pytest

from tests import clients
from tests.drawings import data_uri, png
from tests.own_lane import MODEL

pytestmark = clients.needs_clients

LANGCHAIN, LLAMAINDEX = "LangChain", "LlamaIndex"
IMAGE = data_uri(png("red", "circle"))
PROMPT = "<|im_start|>User:\nWho are you?<end_of_utterance>\nAssistant:\n"


@pytest.fixture(scope="module")
def langchain(demo_lane: str) -> dict[str, Any]:
    return clients.ask("ask_langchain.py", demo_lane, "sa-all", IMAGE)


@pytest.fixture(scope="module")
def llamaindex(demo_lane: str) -> dict[str, Any]:
    return clients.ask("ask_llamaindex.py", demo_lane, "sa-all", IMAGE, PROMPT)


@pytest.mark.client(LANGCHAIN, "chat")
@pytest.mark.client(LANGCHAIN, "chat, streamed")
@pytest.mark.client(LANGCHAIN, "usage of a stream")
@pytest.mark.client(LANGCHAIN, "asynchronous")
def test_langchain_chats(langchain: dict[str, Any]) -> None:
    whole = langchain["whole"]
    assert "demo model" in whole
    assert langchain["finish_reason"] == "stop"
    assert langchain["usage"]["input_tokens"] > 5
    assert "".join(langchain["pieces"]) == whole
    assert sum(bool(piece) for piece in langchain["pieces"]) > 3
    counts = ("input_tokens", "output_tokens", "total_tokens")
    (streamed,) = langchain["streamed_usage"]
    assert [streamed[name] for name in counts] == [langchain["usage"][name] for name in counts]
    assert langchain["awaited"] == whole
    assert langchain["several"][0] == whole


@pytest.mark.client(LANGCHAIN, "system prompt and several turns")
@pytest.mark.client(LANGCHAIN, "an image in a chat")
def test_langchain_shows_images_and_turns(langchain: dict[str, Any]) -> None:
    assert "demo model" in langchain["turns"]
    assert "red" in langchain["image"].lower()
    assert langchain["own_image_part"] == langchain["image"]


@pytest.mark.client(LANGCHAIN, "stop")
@pytest.mark.client(LANGCHAIN, "seed")
@pytest.mark.client(LANGCHAIN, "log-probabilities")
@pytest.mark.client(LANGCHAIN, "output formats")
def test_langchains_fields_are_honoured(langchain: dict[str, Any]) -> None:
    whole = langchain["whole"]
    assert langchain["stopped"] == whole[: whole.index("model")]
    assert langchain["seeded"][0] == langchain["seeded"][1]
    assert langchain["logprobs"] > 5
    assert langchain["structured"]["color"] in ("red", "blue")


@pytest.mark.client(LANGCHAIN, "tools", refused="engine transformers calls no functions; vLLM does")
def test_langchains_tools_need_vllm(langchain: dict[str, Any]) -> None:
    name, sentence = langchain["tools"]
    assert (name, "calls no functions" in sentence) == ("OpenAIInvalidRequestError", True)


@pytest.mark.client(LANGCHAIN, "errors in its own classes")
def test_langchain_is_told_what_is_wrong(langchain: dict[str, Any]) -> None:
    assert langchain["wrong_key"][0] == "OpenAIAuthenticationError"
    assert langchain["wrong_model"][0] == "OpenAIModelNotFoundError"
    name, sentence = langchain["wrong_value"]
    assert (name, "temperature" in sentence) == ("OpenAIInvalidRequestError", True)


@pytest.mark.client(LLAMAINDEX, "chat")
@pytest.mark.client(LLAMAINDEX, "chat, streamed")
@pytest.mark.client(LLAMAINDEX, "asynchronous")
@pytest.mark.client(LLAMAINDEX, "system prompt and several turns")
@pytest.mark.client(LLAMAINDEX, "an image in a chat")
def test_llamaindex_chats(llamaindex: dict[str, Any]) -> None:
    whole = llamaindex["whole"]
    assert "demo model" in whole
    assert "".join(llamaindex["pieces"]) == whole
    assert len(llamaindex["pieces"]) > 3
    assert llamaindex["awaited"] == whole
    assert llamaindex["asked_by_text"] == whole
    assert "demo model" in llamaindex["turns"]
    assert "red" in llamaindex["image"].lower()


@pytest.mark.client(LLAMAINDEX, "completions")
def test_llamaindex_completes(llamaindex: dict[str, Any]) -> None:
    assert llamaindex["completed"] == llamaindex["whole"]
    assert "".join(llamaindex["completed_pieces"]) == llamaindex["completed"]


@pytest.mark.client(LLAMAINDEX, "stop")
@pytest.mark.client(LLAMAINDEX, "errors in its own classes")
def test_llamaindex_is_heard_and_told(llamaindex: dict[str, Any]) -> None:
    whole = llamaindex["whole"]
    assert llamaindex["stopped"] == whole[: whole.index("model")]
    assert llamaindex["wrong_key"][0] == "AuthenticationError"
    name, sentence = llamaindex["wrong_model"]
    assert (name, MODEL in sentence) == ("NotFoundError", True)

"""Hugging Face's client for Python over the demo model: each of its tasks that this service has."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, ValidationError

from tests.drawings import data_uri, png, says
from tests.own_lane import MODEL

CLIENT = "huggingface_hub"
PROMPT = "<|im_start|>User:\n{}<end_of_utterance>\nAssistant:\n"  # the demo's template, for one turn
WHO = PROMPT.format("Who are you?")
ASKED = "What color is the circle?"
MESSAGES: list[dict[str, Any]] = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture
def lane(demo_lane: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # this one stays on the machine
    return demo_lane


@pytest.fixture
def client(lane: str) -> InferenceClient:
    return InferenceClient(model=lane, token="sa-all")


def image(color: str, shape: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_uri(png(color, shape))}}


def in_markdown(color: str, shape: str) -> str:
    return PROMPT.format(f"![]({data_uri(png(color, shape))})What is in this picture?")


@pytest.mark.client(CLIENT, "text generation")
@pytest.mark.client(CLIENT, "text generation, streamed")
@pytest.mark.client(CLIENT, "details of tokens")
@pytest.mark.client(CLIENT, "seed")
@pytest.mark.client(CLIENT, "stop")
def test_it_generates(client: InferenceClient) -> None:
    whole = client.text_generation(WHO)
    assert "demo model" in whole
    told = client.text_generation(WHO, details=True, seed=3, stop=["never said"], top_n_tokens=2)
    assert (told.generated_text, told.details.finish_reason, told.details.seed) == (whole, "eos_token", 3)
    assert "".join(token.text for token in told.details.tokens if not token.special) == whole
    assert all(len(tops) == 2 for tops in told.details.top_tokens)
    *texts, end = client.text_generation(WHO, stream=True)
    assert ("".join(texts), end) == (whole, "<end_of_utterance>")
    *_, last = client.text_generation(WHO, stream=True, details=True)
    assert (last.generated_text, last.details.finish_reason) == (whole, "eos_token")
    stopped = client.text_generation(WHO, stop=["model"], details=True)
    assert stopped.generated_text == whole[: whole.index("model")] + "model"
    sampled = [client.text_generation("Hello", temperature=3.0, seed=7, max_new_tokens=12) for _ in range(2)]
    assert sampled[0] == sampled[1]


@pytest.mark.client(CLIENT, "output formats")
def test_a_grammar_binds(client: InferenceClient) -> None:
    assert client.text_generation(WHO, grammar={"type": "regex", "value": "(ab){3}"}) == "ababab"
    assert client.text_generation(WHO, grammar={"type": "json", "value": {"const": 7}}) == "7"


@pytest.mark.client(CLIENT, "information and health")
def test_it_asks_for_info(lane: str) -> None:
    client = InferenceClient(model=lane, provider="hf-inference", token="sa-all")
    assert client.get_endpoint_info()["model_id"] == MODEL
    assert client.health_check()


@pytest.mark.client(CLIENT, "an image in a prompt")
@pytest.mark.parametrize(("color", "shape"), [("green", "triangle"), ("blue", "square")])
def test_it_shows_an_image(client: InferenceClient, color: str, shape: str) -> None:
    whole = client.text_generation(in_markdown(color, shape), details=True)
    assert says(whole.generated_text, color, shape)
    *_, last = client.text_generation(in_markdown(color, shape), stream=True, details=True)
    assert last.generated_text == whole.generated_text
    assert last.details.input_length > 20


@pytest.mark.client(CLIENT, "image-to-text")
def test_it_has_an_image_captioned(client: InferenceClient, tmp_path: Path) -> None:
    file = tmp_path / "square.png"
    file.write_bytes(png("blue", "square"))
    for image in (png("blue", "square"), str(file)):
        assert says(client.image_to_text(image).generated_text, "blue", "square")


@pytest.mark.client(CLIENT, "questions about an image")
@pytest.mark.client(CLIENT, "questions about a document")
@pytest.mark.parametrize("color", ["red", "blue"])
def test_it_asks_about_an_image(client: InferenceClient, color: str) -> None:
    image = png(color, "circle")
    (answer,) = client.visual_question_answering(image, ASKED)
    assert color in answer.answer.lower()
    assert 0 < answer.score <= 1
    assert client.visual_question_answering(image, ASKED, top_k=5) == [answer]
    (told,) = client.document_question_answering(image, ASKED)
    assert (told.answer, told.score) == (answer.answer, answer.score)
    assert (told.start, told.end) == (None, None)


@pytest.mark.client(CLIENT, "questions about a document", refused="language and word boxes: no words are read")
def test_what_only_readers_of_words_heed_is_refused(client: InferenceClient) -> None:
    for more in ({"lang": "de"}, {"word_boxes": [[0.0, 0.0, 1.0, 1.0]]}, {"doc_stride": 5}):
        (name,) = more
        with pytest.raises(HfHubHTTPError, match=f"parameters.{name}"):
            client.document_question_answering(png("red", "circle"), ASKED, **more)


@pytest.mark.client(CLIENT, "chat")
@pytest.mark.client(CLIENT, "chat, streamed")
@pytest.mark.client(CLIENT, "usage of a stream")
@pytest.mark.client(CLIENT, "log-probabilities")
@pytest.mark.client(CLIENT, "output formats")
def test_it_chats(client: InferenceClient) -> None:
    answer = client.chat_completion(MESSAGES, logprobs=True, top_logprobs=2)
    assert "demo" in answer.choices[0].message.content
    assert len(answer.choices[0].logprobs.content) > 5
    *pieces, last = client.chat_completion(MESSAGES, stream=True, stream_options={"include_usage": True})
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == answer.choices[0].message.content
    assert (last.choices, dict(last.usage)) == ([], dict(answer.usage))
    schema = {"type": "json_schema", "json_schema": {"name": "word", "schema": {"const": "yes"}}}
    bound = client.chat_completion(MESSAGES, response_format=schema)
    assert bound.choices[0].message.content == '"yes"'


@pytest.mark.client(CLIENT, "system prompt and several turns")
@pytest.mark.client(CLIENT, "an image in a chat")
@pytest.mark.client(CLIENT, "several images")
def test_it_shows_images_in_a_chat(client: InferenceClient) -> None:
    question = {"type": "text", "text": "What is in this picture?"}
    turns = [
        {"role": "system", "content": "You are brief."},
        {"role": "user", "content": [image("red", "circle"), question]},
        {"role": "assistant", "content": "a red circle"},
        {"role": "user", "content": [question, image("blue", "square")]},
    ]
    first = client.chat_completion(turns[:2], temperature=0)
    assert says(first.choices[0].message.content, "red", "circle")
    both = client.chat.completions.create(turns, temperature=0)
    assert both.usage.prompt_tokens > 1.5 * first.usage.prompt_tokens
    assert "blue" in both.choices[0].message.content.lower()


@pytest.mark.client(CLIENT, "tools", refused="engine transformers calls no functions; vLLM does")
def test_tools_need_vllm(client: InferenceClient) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    with pytest.raises(BadRequestError, match="calls no functions"):
        client.chat_completion(MESSAGES, tools=[tool])


@pytest.mark.client(CLIENT, "asynchronous")
async def test_it_does_so_asynchronously(lane: str) -> None:
    async with AsyncInferenceClient(model=lane, token="sa-all") as client:
        whole = await client.text_generation(WHO)
        assert "demo model" in whole
        *texts, _ = [text async for text in await client.text_generation(WHO, stream=True)]
        assert "".join(texts) == whole
        chat = await client.chat_completion(MESSAGES)
        assert "demo model" in chat.choices[0].message.content
        (answer,) = await client.visual_question_answering(png("red", "circle"), ASKED)
        assert "red" in answer.answer.lower()


@pytest.mark.client(CLIENT, "errors in its own classes")
@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"typical_p": 0.5}, {"watermark": True}, {"top_p": 1.0}])
def test_it_is_told_what_it_may_not_ask(client: InferenceClient, wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValidationError, match=name):
        client.text_generation("Hello", **wrong)


@pytest.mark.client(CLIENT, "errors in its own classes")
def test_it_is_told_what_is_no_image(client: InferenceClient) -> None:
    with pytest.raises(HfHubHTTPError, match="image: this looks like text"):
        client.visual_question_answering(b"no image at all, but a text", ASKED)
    with pytest.raises(HfHubHTTPError, match=r"inputs\.image: this looks like text"):
        client.document_question_answering(b"no image at all, but a text", ASKED)
    with pytest.raises(HfHubHTTPError, match="question"):
        client.visual_question_answering(png("red", "circle"), "")

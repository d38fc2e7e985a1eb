"""Chat through the whole service: OpenAI's client, streamed and not, with and without images."""

import json

import httpx
import openai
import pytest

from tests.drawings import data_uri, png, says

pytestmark = pytest.mark.cluster


def with_image(question: str, color: str, shape: str) -> list[dict[str, object]]:
    image = {"type": "image_url", "image_url": {"url": data_uri(png(color, shape))}}
    return [{"role": "user", "content": [{"type": "text", "text": question}, image]}]


def test_an_answer_has_openais_shape(openai_client: openai.OpenAI) -> None:
    answer = openai_client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Who are you?"}]
    )
    assert "demo" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.model == "demo"
    assert answer.id.startswith("chatcmpl-")


def test_a_question_about_an_image_is_answered_from_that_image(openai_client: openai.OpenAI) -> None:
    for color, shape in (("red", "circle"), ("blue", "square")):
        answer = openai_client.chat.completions.create(
            model="demo", messages=with_image(f"What color is the {shape}?", color, shape)
        )
        assert color in (answer.choices[0].message.content or "").lower()


def test_a_stream_says_the_same_as_an_answer(openai_client: openai.OpenAI) -> None:
    messages = with_image("Describe this picture in detail.", "green", "triangle")
    whole = openai_client.chat.completions.create(model="demo", messages=messages, temperature=0)
    chunks = list(
        openai_client.chat.completions.create(
            model="demo",
            messages=messages,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) > 3
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"


def test_a_stream_tells_its_usage_as_it_grows(openai_client: openai.OpenAI) -> None:
    chunks = list(
        openai_client.chat.completions.create(
            model="demo",
            messages=with_image("Describe this picture in detail.", "green", "triangle"),
            stream=True,
            stream_options={"include_usage": True, "continuous_usage_stats": True},
        )
    )
    usages = [chunk.usage for chunk in chunks if chunk.usage]
    counts = [usage.completion_tokens for usage in usages]
    assert len(usages) == len(chunks)
    assert counts == sorted(counts)
    assert len(set(counts)) > 3
    assert counts[-1] == counts[-2]
    assert len({usage.prompt_tokens for usage in usages}) == 1


def test_two_images_in_one_chat(openai_client: openai.OpenAI) -> None:
    first = with_image("What is in this picture?", "red", "circle")
    messages = [*first, {"role": "assistant", "content": "a red circle"}]
    messages += with_image("What is in this picture?", "blue", "square")
    answer = openai_client.chat.completions.create(model="demo", messages=messages)
    assert says(answer.choices[0].message.content or "", "blue", "square")


def test_a_seed_gives_the_same_answer_again(openai_client: openai.OpenAI) -> None:
    def ask(seed: int) -> str:
        answer = openai_client.chat.completions.create(
            model="demo",
            seed=seed,
            temperature=2,
            max_tokens=24,
            messages=[{"role": "user", "content": "Hello"}],
        )
        return answer.choices[0].message.content or ""

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(2, 8)}) > 1


def test_max_tokens_and_stop_end_an_answer(openai_client: openai.OpenAI) -> None:
    messages = with_image("Write a short caption for this picture.", "red", "circle")
    short = openai_client.chat.completions.create(model="demo", messages=messages, max_tokens=2)
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 2
    stopped = openai_client.chat.completions.create(model="demo", messages=messages, stop=["circle"])
    assert stopped.choices[0].finish_reason == "stop"
    assert "red" in (stopped.choices[0].message.content or "")
    assert "circle" not in (stopped.choices[0].message.content or "")


def test_models_are_listed_with_what_they_can_do(openai_client: openai.OpenAI, client: httpx.Client) -> None:
    assert [model.id for model in openai_client.models.list()] == ["demo", "script"]
    demo = client.get("/v1/models/demo").json()
    assert demo == openai_client.models.retrieve("demo").to_dict()
    assert demo["tasks"] == ["chat", "caption"]
    assert demo["state"] == "ready"
    assert demo["engine"] == "transformers"
    assert demo["context_length"] >= 512


def test_errors_are_the_right_class_in_openais_client(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean 'demo'"):
        openai_client.chat.completions.create(model="demmo", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.BadRequestError, match="temperature") as raised:
        openai_client.chat.completions.create(
            model="demo", temperature=3, messages=[{"role": "user", "content": "hi"}]
        )
    assert raised.value.code == "invalid_request"
    assert raised.value.param == "temperature"


def test_a_late_failure_is_an_error_event_and_no_done(client: httpx.Client, openai_client: openai.OpenAI) -> None:
    body = {"model": "script", "stream": True, "messages": [{"role": "user", "content": "!fail-after 3"}]}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert response.status_code == 200
    assert json.loads(events[-1])["error"]["code"] == "engine_failed"
    assert "[DONE]" not in events
    with pytest.raises(openai.APIError):
        list(openai_client.chat.completions.create(**body))


def test_an_early_failure_has_a_real_status(client: httpx.Client) -> None:
    body = {"model": "script", "stream": True, "messages": [{"role": "user", "content": "!oom"}]}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "engine_failed"
    assert "Traceback" not in response.text

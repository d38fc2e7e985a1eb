"""OpenAI's client for Python, both of its kinds, over the demo model's own lane: what people call, and how."""

import asyncio
import inspect
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.drawings import data_uri, png, says
from tests.own_lane import MODEL, bearer, own_lane, scripted

CLIENT = "openai-python"
BOTH = ("OpenAI", "AsyncOpenAI")
WHO: list[dict[str, Any]] = [{"role": "user", "content": "Who are you?"}]
RAW = "<|im_start|>User:\nWho are you?<end_of_utterance>\nAssistant:\n"


class Caller:
    """One of the two clients. `ask` gives what a call gives, awaited; a stream's chunks as a list."""

    def __init__(self, kind: str, url: str, key: str = "all", max_retries: int = 0) -> None:
        http = openai.DefaultHttpxClient if kind == "OpenAI" else openai.DefaultAsyncHttpxClient
        make = getattr(openai, kind)
        self.client = make(
            base_url=f"{url}/v1", api_key=f"sa-{key}", max_retries=max_retries, http_client=http(trust_env=False)
        )
        self._loop = asyncio.new_event_loop()

    def ask(self, call: Callable[[Any], Any]) -> Any:
        return self._loop.run_until_complete(self._settled(call(self.client)))

    def chat(self, messages: Any = None, **fields: Any) -> Any:
        return self.ask(
            lambda client: client.chat.completions.create(messages=messages or WHO, **({"model": "tgi"} | fields))
        )

    def close(self) -> None:
        self._loop.run_until_complete(self._settled(self.client.close()))
        self._loop.close()

    async def _settled(self, found: Any) -> Any:
        if inspect.isawaitable(found):
            found = await found
        if isinstance(found, openai.AsyncStream):
            return [chunk async for chunk in found]
        return list(found) if isinstance(found, openai.Stream) else found


@contextmanager
def calling(kind: str, url: str, key: str = "all", max_retries: int = 0) -> Iterator[Caller]:
    caller = Caller(kind, url, key, max_retries)
    try:
        yield caller
    finally:
        caller.close()


@pytest.fixture(params=BOTH)
def demo(request: pytest.FixtureRequest, demo_lane: str) -> Iterator[Caller]:
    with calling(request.param, demo_lane) as caller:
        yield caller


@pytest.fixture(scope="module")
def script_lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_lane(tmp_path_factory.mktemp("lane")) as url:
        yield str(url)


def text_of(answer: Any) -> str:
    said: str = answer.choices[0].message.content
    return said


def deltas_of(chunks: list[Any], index: int = 0) -> str:
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices if c.index == index)


def image(color: str, shape: str, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_uri(png(color, shape)), **more}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


@pytest.mark.client(CLIENT, "chat")
@pytest.mark.client(CLIENT, "chat, streamed")
@pytest.mark.client(CLIENT, "usage of a stream")
@pytest.mark.client(CLIENT, "asynchronous")
def test_a_chat_is_answered_whole_and_streamed(demo: Caller) -> None:
    whole = demo.chat(temperature=0)
    assert "demo model" in text_of(whole)
    assert (whole.object, whole.model, whole.choices[0].finish_reason) == ("chat.completion", MODEL, "stop")
    chunks = demo.chat(temperature=0, stream=True, stream_options={"include_usage": True})
    assert deltas_of(chunks) == text_of(whole)
    assert len(chunks) > 5
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert all(chunk.usage is None for chunk in chunks[:-1])
    plain = demo.chat(temperature=0, stream=True)
    assert deltas_of(plain) == text_of(whole)
    assert all(chunk.usage is None for chunk in plain)


@pytest.mark.client(CLIENT, "system prompt and several turns")
@pytest.mark.parametrize("role", ["system", "developer"])
def test_system_prompts_and_turns_are_read(demo: Caller, role: str) -> None:
    turns = [{"role": role, "content": "You are brief."}, {"role": "user", "content": "Hello"},
             {"role": "assistant", "content": "Hello!"}, *WHO]  # fmt: skip
    answer = demo.chat(turns, temperature=0)
    assert "demo model" in text_of(answer)
    shorter = [demo.chat(part, temperature=0, max_tokens=1).usage.prompt_tokens for part in (WHO, turns[1:])]
    assert shorter[0] < shorter[1] < answer.usage.prompt_tokens


@pytest.mark.client(CLIENT, "an image in a chat")
@pytest.mark.client(CLIENT, "parts in any order, detail")
@pytest.mark.parametrize("detail", [{}, {"detail": "low"}, {"detail": "high"}, {"detail": "auto"}])
@pytest.mark.parametrize("is_image_first", [True, False])
def test_parts_come_in_any_order_with_any_detail(demo: Caller, detail: dict[str, str], is_image_first: bool) -> None:
    parts = [image("red", "circle", **detail), text("What color is the circle?")]
    answer = demo.chat([user(*(parts if is_image_first else parts[::-1]))], temperature=0)
    assert "red" in text_of(answer).lower()


@pytest.mark.client(CLIENT, "several images")
def test_several_images_are_read(demo: Caller) -> None:
    one, another = image("red", "circle"), image("blue", "square")
    question = text("What is in this picture?")
    turns = [user(one, question), {"role": "assistant", "content": "a red circle"}, user(another, question)]
    assert says(text_of(demo.chat(turns, temperature=0)), "blue", "square")

    def num_prompt_tokens(*parts: dict[str, Any]) -> int:
        count: int = demo.chat([user(*parts)], max_tokens=1).usage.prompt_tokens
        return count

    per_image = num_prompt_tokens(one, question) - num_prompt_tokens(question)
    assert per_image > 10
    assert num_prompt_tokens(one, text("and"), another, question) > num_prompt_tokens(question) + 2 * per_image
    with pytest.raises(openai.BadRequestError, match="a request takes 3") as told:
        demo.chat([user(*[one] * 4, question)])
    assert (told.value.code, told.value.param) == ("too_many_images", "messages")


@pytest.mark.client(CLIENT, "several answers (n)")
def test_several_answers(demo: Caller) -> None:
    asked = {"n": 3, "temperature": 2, "seed": 5, "max_tokens": 8}
    whole = demo.chat(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) > 1
    chunks = demo.chat(**asked, stream=True)
    assert [deltas_of(chunks, index) for index in range(3)] == texts


@pytest.mark.client(CLIENT, "stop")
@pytest.mark.parametrize("stop", ["model", ["never said", "model"]])
def test_a_stop_string_is_left_out(demo: Caller, stop: Any) -> None:
    full = text_of(demo.chat(temperature=0))
    stopped = demo.chat(temperature=0, stop=stop)
    assert text_of(stopped) == full[: full.index("model")]
    assert stopped.choices[0].finish_reason == "stop"
    assert deltas_of(demo.chat(temperature=0, stop=stop, stream=True)) == text_of(stopped)


@pytest.mark.client(CLIENT, "seed")
def test_a_seed_gives_the_same_answer_again(demo: Caller) -> None:
    def ask(seed: int) -> str:
        return text_of(demo.chat(seed=seed, temperature=2, max_tokens=16))

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(2, 6)}) > 1


@pytest.mark.client(CLIENT, "log-probabilities")
def test_logprobs_are_told_whole_and_streamed(demo: Caller) -> None:
    asked = {"temperature": 0, "max_tokens": 6, "logprobs": True, "top_logprobs": 2}
    whole = demo.chat(**asked)
    told = whole.choices[0].logprobs.content
    assert "".join(token.token for token in told) == text_of(whole)
    for token in told:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 2
        assert token.logprob == max(top.logprob for top in token.top_logprobs)
    chunks = demo.chat(**asked, stream=True)
    streamed = [t for chunk in chunks for c in chunk.choices if c.logprobs for t in c.logprobs.content or ()]
    assert [token.token for token in streamed] == [token.token for token in told]


class Seen(BaseModel):
    color: Literal["red", "blue"]
    is_round: bool


@pytest.mark.client(CLIENT, "output formats")
def test_formats_bind(demo: Caller) -> None:
    plain = demo.chat(temperature=0, response_format={"type": "text"})
    assert "demo model" in text_of(plain)
    schema = {"name": "color", "strict": True, "schema": {"enum": ["red", "blue"]}}
    bound = demo.chat(response_format={"type": "json_schema", "json_schema": schema})
    assert json.loads(text_of(bound)) in ("red", "blue")
    free = demo.chat(response_format={"type": "json_object"}, temperature=0, frequency_penalty=1, max_tokens=200)
    assert text_of(free).lstrip().startswith("{")
    asked = [user(image("red", "circle"), text("What color is the circle?"))]
    # Without the penalty a model of this size writes blanks for ever, which is JSON too.
    asking = {"model": "tgi", "messages": asked, "temperature": 0, "frequency_penalty": 2}
    parsed = demo.ask(lambda client: client.chat.completions.parse(**asking, response_format=Seen))
    assert isinstance(parsed.choices[0].message.parsed, Seen)


TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.mark.client(CLIENT, "tools", refused="engine transformers calls no functions; vLLM does")
@pytest.mark.parametrize("choice", [None, "auto", "required", {"type": "function", "function": {"name": "weather"}}])
def test_tools_need_vllm(demo: Caller, choice: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="calls no functions") as told:
        demo.chat(tools=[TOOL], **({"tool_choice": choice} if choice else {}))
    assert (told.value.code, told.value.param) == ("unsupported_task", "tools")
    assert "demo model" in text_of(demo.chat(tools=[TOOL], tool_choice="none", temperature=0))


@pytest.mark.client(CLIENT, "completions")
def test_completions_whole_and_streamed(demo: Caller) -> None:
    asked: dict[str, Any] = {"model": "tgi", "prompt": RAW, "max_tokens": 60, "temperature": 0}
    whole = demo.ask(lambda client: client.completions.create(**asked))
    assert "demo model" in whole.choices[0].text
    chunks = demo.ask(
        lambda client: client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage


@pytest.mark.client(CLIENT, "models")
def test_models_are_listed_and_retrieved(demo: Caller) -> None:
    listed = demo.ask(lambda client: client.models.list()).data
    assert [model.id for model in listed] == [MODEL]
    assert demo.ask(lambda client: client.models.retrieve(MODEL)) == listed[0]
    with pytest.raises(openai.NotFoundError, match=f"did you mean '{MODEL}'"):
        demo.ask(lambda client: client.models.retrieve("scripts"))


@pytest.mark.client(CLIENT, "raw responses")
def test_raw_responses_have_the_headers(demo: Caller) -> None:
    raw = demo.ask(
        lambda client: client.chat.completions.with_raw_response.create(model="tgi", messages=WHO, temperature=0)
    )
    assert (raw.status_code, raw.retries_taken) == (200, 0)
    answer, request_id = raw.parse(), raw.headers["x-request-id"]
    assert (answer.id, answer._request_id) == (f"chatcmpl-{request_id}", request_id)
    assert "demo model" in text_of(answer)
    stream = demo.ask(
        lambda client: client.chat.completions.with_raw_response.create(
            model="tgi", messages=WHO, temperature=0, stream=True
        )
    )
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert deltas_of(demo.ask(lambda _: stream.parse())) == text_of(answer)


@pytest.mark.client(CLIENT, "the client's own stream helper")
def test_the_stream_helper_follows_an_answer(demo: Caller) -> None:
    async def followed(client: Any) -> tuple[list[str], Any]:
        manager = client.chat.completions.stream(model="tgi", messages=WHO, temperature=0)
        if isinstance(client, openai.OpenAI):
            with manager as stream:
                return [event.type for event in stream], stream.get_final_completion()
        async with manager as stream:
            return [event.type async for event in stream], await stream.get_final_completion()

    events, final = demo.ask(followed)
    assert text_of(final) == text_of(demo.chat(temperature=0))
    assert events.count("content.delta") > 5
    assert events[-1] == "content.done"


# The status, what the client makes of it, and what is asked.
ERRORS: dict[str, tuple[type[openai.APIStatusError], str, dict[str, Any], dict[str, str]]] = {
    "a bad value": (openai.BadRequestError, "invalid_request", {"temperature": 3}, {}),
    "a bad key": (openai.AuthenticationError, "invalid_api_key", {}, {"authorization": "Bearer no"}),
    "another's model": (openai.PermissionDeniedError, "forbidden", {}, bearer("elsewhere")),
    "no such model": (openai.NotFoundError, "model_not_found", {"model": "nobody"}, {}),
    "too large": (openai.APIStatusError, "body_too_large", {"messages": [text("x" * 400_000)]}, {}),
    "a dead engine": (openai.InternalServerError, "engine_failed", {"messages": [user(text("!oom"))]}, {}),
    "too late": (openai.InternalServerError, "deadline_exceeded", {"messages": [user(text("!slow 30"))]},
                 {"X-Request-Timeout": "0.2"}),
}  # fmt: skip


@pytest.mark.client(CLIENT, "errors in its own classes")
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(("error", "code", "fields", "headers"), ERRORS.values(), ids=list(ERRORS))
@pytest.mark.parametrize("is_streamed", [False, True])
def test_errors_have_their_own_classes(
    script_lane: str, kind: str, error: type[openai.APIStatusError], code: str, fields: Any, headers: Any,
    is_streamed: bool,
) -> None:  # fmt: skip
    with calling(kind, script_lane) as caller, pytest.raises(error) as told:
        caller.chat(**fields, extra_headers=headers, stream=is_streamed)
    assert type(told.value) is error
    assert told.value.code == code
    assert told.value.request_id


@pytest.mark.client(CLIENT, "errors in its own classes")
@pytest.mark.parametrize("kind", BOTH)
def test_unprocessable_is_a_class_of_tgis_routes(script_lane: str, kind: str) -> None:
    with calling(kind, script_lane) as caller, pytest.raises(openai.UnprocessableEntityError) as told:
        caller.ask(lambda client: client.post(f"{script_lane}/generate", body={}, cast_to=object))
    assert "inputs is missing" in told.value.response.json()["error"]


@pytest.mark.client(CLIENT, "errors in its own classes")
@pytest.mark.parametrize("kind", BOTH)
def test_a_late_failure_is_raised_from_the_stream(script_lane: str, kind: str) -> None:
    with calling(kind, script_lane) as caller, pytest.raises(openai.APIError, match="failure") as told:
        caller.chat([user(text("!fail-after 3"))], stream=True)
    assert told.value.code == "engine_failed"


def ask_until_refused(caller: Caller) -> None:
    for _ in range(1000):
        caller.chat([user(text("!echo hi"))])


def ask_until_retried(caller: Caller) -> None:
    for _ in range(1000):
        raw = caller.ask(
            lambda client: client.chat.completions.with_raw_response.create(
                model=MODEL, messages=[user(text("!echo hi"))]
            )
        )
        assert text_of(raw.parse()) == "hi"
        if raw.retries_taken:
            return
    raise AssertionError("no answer took a retry")


@pytest.mark.client(CLIENT, "retries after 429 and 503")
@pytest.mark.parametrize("kind", BOTH)
def test_a_limit_is_waited_out(script_lane: str, kind: str) -> None:
    """A key with one request a second: the client comes back when `Retry-After` says so."""
    with calling(kind, script_lane, "steady") as impatient, pytest.raises(openai.RateLimitError) as told:
        ask_until_refused(impatient)
    assert told.value.code == "rate_limit_exceeded"
    assert int(told.value.response.headers["retry-after"]) >= 1
    with calling(kind, script_lane, "steady", max_retries=3) as patient:
        ask_until_retried(patient)


@pytest.mark.client(CLIENT, "retries after 429 and 503")
@pytest.mark.parametrize("kind", BOTH)
def test_a_full_model_is_asked_again(tmp_path: Path, kind: str) -> None:
    """One request fills it. While that runs a client without retries is refused, and one with them waits."""
    body = {"messages": [user(text("!slow 5"))]}
    lane = own_lane(tmp_path, scripted(max_ongoing_requests=1), admission={"max_waiting_requests": 0})

    def fill(client: httpx.Client) -> None:
        while client.post("/v1/chat/completions", json=body).status_code != 200:
            pass

    with (
        lane as url,
        calling(kind, str(url)) as impatient,
        calling(kind, str(url), max_retries=30) as patient,
        httpx.Client(base_url=url, headers=bearer("all"), timeout=60, trust_env=False) as other,
    ):
        filling = threading.Thread(target=fill, args=[other])
        filling.start()
        with pytest.raises(openai.InternalServerError) as told:
            ask_until_refused(impatient)
        assert (told.value.status_code, told.value.code) == (503, "overloaded")
        assert int(told.value.response.headers["retry-after"]) >= 1
        ask_until_retried(patient)
        filling.join()


@pytest.mark.client(CLIENT, "retries after 429 and 503")
@pytest.mark.parametrize("kind", BOTH)
def test_what_is_too_late_is_not_asked_again(script_lane: str, kind: str) -> None:
    """`x-should-retry: false`: the work would be lost a second time."""
    with (
        calling(kind, script_lane, max_retries=3) as caller,
        pytest.raises(openai.InternalServerError) as told,
    ):
        caller.chat([user(text("!hang"))], extra_headers={"X-Request-Timeout": "0.2"})
    assert told.value.status_code == 504
    assert told.value.request.headers["x-stainless-retry-count"] == "0"

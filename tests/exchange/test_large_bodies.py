"""What is large and regular: counted before it is parsed, bounded in each field, never parsed on the event loop."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.config.http import MAX_IMAGES
from serve_app.dialects.captions.body import CaptionBody, CaptionForm
from serve_app.dialects.captions.fields import MAX_OPTIONS
from serve_app.dialects.formats import MAX_TOOLS
from serve_app.dialects.markdown_images import MAX_LOOKS
from serve_app.dialects.openai.chat_body import MAX_CALLS, MAX_MESSAGES, MAX_METADATA, MAX_PARTS, ChatBody
from serve_app.dialects.openai.completion_body import MAX_PROMPT_TOKENS, MAX_PROMPTS, CompletionBody
from serve_app.dialects.sampling_body import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
from serve_app.dialects.tgi.body import GenerateBody, TokenizeBody
from serve_app.dialects.tgi.hub_images import CaptionImageBody, FlatQuestionBody, QuestionBody
from serve_app.errors import InvalidRequest
from serve_app.exchange import json_text
from serve_app.exchange.body import MAX_LABEL_CHARACTERS, MAX_TEXT_CHARACTERS, Body
from serve_app.exchange.off_loop import LARGEST_ON_LOOP, off_loop
from serve_app.exchange.unknown_fields import MAX_FIELDS
from serve_app.exchange.validation import parse_json
from tests.own_lane import bearer, own_lane

BODIES: tuple[type[Body], ...] = (
    ChatBody, CompletionBody, CaptionBody, CaptionForm, GenerateBody, TokenizeBody, CaptionImageBody, QuestionBody,
    FlatQuestionBody,
)  # fmt: skip
# Bounded by the body alone: images, prompts with images in them, and what `check_output_format` bounds.
UNBOUNDED = {
    "ImageAddress.url", "ImageObject.url", "ImageObject.b64", "CaptionBody.image", "CaptionBody.images",
    "ImagePart.image_url", "Question.image", "FlatQuestionBody.image", "FlatQuestionBody.inputs",
    "CaptionImageBody.inputs", "GenerateBody.inputs", "CompletionBody.prompt", "JsonGrammar.value",
    "RegexGrammar.value", "StructuredOutputs.json", "StructuredOutputs.regex", "StructuredOutputs.choice",
    "ChatMessage.content",  # as a text it becomes a part, which has its own
}  # fmt: skip


def loops(num_bytes: int, before: bytes, item: bytes, after: bytes) -> bytes:
    return before + item * ((num_bytes - len(before) - len(after)) // len(item)) + after


FLOODS = {
    "empty strings": (b'{"images": [', b'"",', b'""]}'),
    "numbers": (b'{"prompt": [', b"1,", b"1]}"),
    "lists": (b'{"messages": [', b"[],", b"[]]}"),
    "nested lists": (b'{"messages": [', b"[[[[[[]]]]]],", b"[]]}"),
    "objects": (b'{"tools": [', b"{},", b"{}]}"),
    "parts": (b'{"messages": [{"role": "user", "content": [', b'{"type":"text","text":"a"},', b"{}]}]}"),
    "keys": (b'{"metadata": {', b'"key":"",', b'"k":""}}'),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=list(FLOODS))
def test_too_many_values_are_refused_before_they_are_parsed(flood: tuple[bytes, bytes, bytes]) -> None:
    with pytest.raises(InvalidRequest, match=r"the body has more than 1[0,]+ (values|keys|lists and objects)"):
        # it isn't even valid: nothing has looked at what stands behind
        json_text.parse(loops(30_000_000, *flood) + b"]]]")


def test_what_stands_in_texts_is_no_value() -> None:
    text = 'rows: 1,2,3\\,"[{:' * 300_000
    assert json_text.parse(json.dumps({"text": text}).encode()) == {"text": text}


def test_large_and_legitimate_bodies_are_taken() -> None:
    ids = parse_json(json.dumps({"prompt": list(range(131_072))}).encode(), CompletionBody)
    assert len(ids.each_prompt[0]) == 131_072
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}] * MAX_MESSAGES
    assert len(parse_json(json.dumps({"messages": messages}).encode(), ChatBody).messages) == MAX_MESSAGES
    said = {"role": "user", "content": "a " * 1_000_000}
    assert parse_json(json.dumps({"messages": [said]}).encode(), ChatBody)
    images = ["A" * 1_500_000] * 16
    assert len(parse_json(json.dumps({"images": images}).encode(), CaptionBody).images or ()) == 16


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(st.sampled_from('a\\",:[{é'), max_size=8),
    lambda child: st.lists(child, max_size=4) | st.dictionaries(st.text('"\\:,{', max_size=4), child, max_size=4),
)


@given(_json, st.integers(1, 7))
def test_only_what_stands_outside_of_strings_is_counted(value: Any, slice_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "_SLICE_BYTES", slice_bytes)
        outside = b"".join(json_text._outside_strings(json.dumps(value, separators=(",", ":")).encode()))
    assert outside.decode() == _without_strings(value)


def _without_strings(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(":" + _without_strings(child) for child in value.values()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_without_strings(child) for child in value) + "]"
    return "" if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("body", BODIES)
def test_every_list_and_text_of_every_body_has_a_bound(body: type[Body]) -> None:
    """Of the fields as pydantic describes them: what is added without a bound is named here."""
    schema = body.model_json_schema()
    objects = {schema["title"]: schema, **schema.get("$defs", {})}
    unbounded = {
        f"{name}.{field}"
        for name, one in objects.items()
        for field, what in one.get("properties", {}).items()
        if any(_is_unbounded(kind) for kind in _kinds(what))
    }
    assert unbounded <= UNBOUNDED


def _kinds(what: Any) -> Iterator[dict[str, Any]]:
    """The field's types, and those of what it holds."""
    if isinstance(what, dict):
        yield what
        for key in ("anyOf", "oneOf", "items", "additionalProperties", "propertyNames"):
            for child in what[key] if isinstance(what.get(key), list) else [what.get(key)]:
                yield from _kinds(child)


def _is_unbounded(kind: dict[str, Any]) -> bool:
    if kind.get("type") == "array":
        return "maxItems" not in kind
    if kind.get("type") == "object":  # schemas are bounded as they are read
        return isinstance(kind.get("additionalProperties"), dict) and "maxProperties" not in kind
    return kind.get("type") == "string" and not kind.keys() & {"maxLength", "enum", "const", "pattern"}


def test_bounds_are_told_by_name() -> None:
    def refusal(**fields: object) -> InvalidRequest:
        with pytest.raises(InvalidRequest) as raised:
            parse_json(json.dumps({"messages": [{"role": "user", "content": "hi"}]} | fields).encode(), ChatBody)
        return raised.value

    assert refusal(tools=[{}] * 129).message.startswith("tools[0]")
    parts = [{"type": "text", "text": "a"}] * 1001
    many = refusal(messages=[{"role": "user", "content": parts}])
    assert many.message == "messages[0].content: List should have at most 1000 items: send fewer"
    some = {"role": "user", "content": parts[:1000]}
    assert refusal(messages=[some] * 11).message.startswith("messages: they have 11000 parts")
    assert refusal(metadata={f"k{i}": "" for i in range(17)}).param == "metadata"
    assert refusal(messages=[{"role": "user", "content": "a" * (MAX_TEXT_CHARACTERS + 1)}]).param
    assert f"at most {MAX_FIELDS} fields" in refusal(**{f"f{i}": 1 for i in range(MAX_FIELDS)}).message
    bad = refusal(messages=[{"role": "x" * 1000, "n" * 90: 1}] * 9000)  # all are wrong, and the first is told
    assert bad.param == "messages[0].role"
    assert len(bad.message) < 2000


async def test_what_is_large_is_read_on_a_thread() -> None:
    def where() -> str:
        return threading.current_thread().name

    assert await off_loop(LARGEST_ON_LOOP, where) == where()
    assert (await off_loop(LARGEST_ON_LOOP + 1, where)).startswith("body")


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        own_lane(tmp_path_factory.mktemp("lane"), max_body_bytes=32_000_000) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60, headers=bearer("all")) as client,
    ):
        yield client


JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=b"}
PARSING_ROUTES = (
    "/v1/chat/completions", "/v1/completions", "/v1/captions", "/generate", "/generate_stream", "/", "/invocations",
    "/tokenize", "/chat_tokenize",
)  # fmt: skip


@pytest.mark.parametrize("path", PARSING_ROUTES)
def test_every_route_refuses_a_flood_by_its_bound(lane: httpx.Client, path: str) -> None:
    answer = lane.post(path, content=loops(4_000_000, *FLOODS["numbers"]), headers=JSON)
    assert answer.status_code in (400, 422)
    assert "more than 1,000,000 values" in answer.text
    assert lane.get("/health").status_code == 200


def test_a_raw_prompt_has_the_bound_of_texts(lane: httpx.Client) -> None:
    text = lane.post("/generate", json={"inputs": "a" * (MAX_TEXT_CHARACTERS + 1)})
    assert (text.status_code, "shorten it" in text.text) == (422, True)


def test_many_small_parts_of_a_form_end_it_early(lane: httpx.Client) -> None:
    head = '--b\r\nContent-Disposition: form-data; name="stop"\r\n\r\nx\r\n'
    kinds = {
        "parts": (head * 100_000 + "--b--\r\n").encode(),
        "headers": b"--b\r\n" + b"a: b\r\n" * 1_000_000,
        "one header": b"--b\r\na: " + b"b" * 10_000_000,
    }
    for name, content in kinds.items():
        answer = lane.post("/v1/captions", content=content, headers=FORM)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request"), name


async def test_others_are_served_while_a_large_body_is_read() -> None:
    """The loop goes round while the thread counts: never a measure of how often."""
    text = json.dumps({"inputs": '\\",' * 2_000_000}).encode()
    reading = asyncio.create_task(off_loop(len(text), json_text.parse, text))
    num_turns = 0
    while not reading.done():
        await asyncio.sleep(0.001)
        num_turns += 1
    assert num_turns > 1
    assert set(await reading) == {"inputs"}


def test_a_key_that_stands_twice_is_told() -> None:
    for data, key in ((b'{"model": 1, "model": 2}', "model"), (b'{"messages": [{"role": 1, "role": 1}]}', "role")):
        with pytest.raises(InvalidRequest, match=f"the key '{key}' twice") as raised:
            json_text.parse(data)
        assert raised.value.param == key
    with pytest.raises(InvalidRequest) as raised:
        json_text.parse(b'{"%b": 1, "%b": 1}' % (b"k" * 9000, b"k" * 9000))
    assert len(raised.value.message) < 200


def test_a_byte_order_mark_is_read_over() -> None:
    assert json_text.parse('{"é": 1}'.encode("utf-8-sig")) == {"é": 1}
    for encoding in ("utf-16", "utf-32"):
        with pytest.raises(InvalidRequest, match="send it in UTF-8"):
            json_text.parse("{}".encode(encoding))


@given(st.text(st.sampled_from('\\",:[{}] a1'), max_size=300))
def test_what_is_no_json_is_told_so_whatever_it_holds(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_text, "_BOUNDS", ((0, "values"), (0, "lists and objects"), (0, "keys")))
        with suppress(InvalidRequest):
            json_text.parse(text.encode())


def test_the_page_of_the_api_has_the_bounds() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "api.md").read_text().partition("## How large")[2]
    numbers = (
        json_text.MAX_VALUES, json_text.MAX_CONTAINERS, json_text.MAX_KEYS, MAX_FIELDS, MAX_TEXT_CHARACTERS,
        MAX_PARTS, MAX_LABEL_CHARACTERS, MAX_MESSAGES, MAX_CALLS, MAX_TOOLS, MAX_METADATA, MAX_PROMPTS,
        MAX_PROMPT_TOKENS,
        MAX_STOP_STRINGS, MAX_STOP_CHARACTERS, MAX_IMAGES, MAX_LOOKS, MAX_OPTIONS,
    )  # fmt: skip
    for number in numbers:
        assert re.search(rf"(?<![0-9,]){number:,}(?![0-9,])", page), number

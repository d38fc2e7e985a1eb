"""Foreign fields of messages and parts: read over and told, unless they look like ours."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from serve_app.dialects.openai.chat_body import ChatBody
from serve_app.exchange.unknown_fields import MAX_NAMES, IgnoredFields
from serve_app.exchange.validation import validate
from tests.dialects.test_malformed import check_error, check_serves_on
from tests.own_lane import bearer, own_lane

CHAT = "/v1/chat/completions"
IMAGE = "data:image/gif;base64,R0lGODdhAQABAIAAAP///////ywAAAAAAQABAAACAkQBADs="
PAGE = "https://pages.example"
USER: dict[str, Any] = {"role": "user", "content": "!echo hi"}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        own_lane(tmp_path_factory.mktemp("lane"), cors_origins=[PAGE]) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60, headers=bearer("all")) as client,
    ):
        yield client


def _with_part(**more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "!echo hi", **more}]}]


def _with_turn(**turn: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", **turn}, USER]


@pytest.mark.parametrize(
    ("messages", "header"),
    [
        ([USER | {"cache_control": {"type": "ephemeral"}}], "cache_control"),
        (_with_part(cache_control={"type": "ephemeral"}), "cache_control"),
        (_with_part(cache_control=None, annotations=[]), None),
        (_with_part(uuid="u-1", extra=0), "uuid, extra"),
        ([USER, *_with_part(uuid="u-1"), USER | {"uuid": "u-2", "id": "m"}, USER], "uuid, id"),
        (_with_turn(annotations=[{"type": "url_citation"}]), "annotations"),
        (_with_turn(refusal="I won't"), None),
        (_with_turn(refusal=None, annotations=[], audio=None, function_call=None), None),
        (_with_turn(provider_specific_fields={"a": 1}, reasoning_details=[{}]),
         "provider_specific_fields, reasoning_details"),
        ([*_with_turn(tool_calls=[CALL | {"index": 0}]), {"role": "tool", "tool_call_id": "c", "content": "1"}, USER],
         "index"),
        (_with_turn(reasoning_text="a", reasoning_items=[1], reasoning_opaque="b", reasoning_tokens=5,
                    reasoning_effort="low", reasoningText="c"),
         "reasoning_text, reasoning_items, reasoning_opaque, reasoning_tokens, reasoning_effort, reasoningText"),
        (_with_turn(content_type="text", context={"citations": []}, message_role="x", tool_name="f"),
         "content_type, context, message_role, tool_name"),
        (_with_turn(images=[], attachments=None, files=[]), None),
        (_with_part(**{"größe\r\nx-evil: 1": 1}), "gr%C3%B6%C3%9Fe%0D%0Ax-evil%3A%201"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": IMAGE, "max_px": 9}, "id": "p"},
                                       {"type": "text", "text": "!echo hi"}]}], "id, max_px"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_asks_for_nothing_is_read_over_and_told(
    client: httpx.Client, messages: list[dict[str, Any]], header: str | None, stream: bool
) -> None:
    answer = client.post(CHAT, json={"messages": messages, "stream": stream})
    assert answer.status_code == 200, answer.text
    told = answer.headers.get("x-ignored-fields")
    assert (set(told.split(", ")) if told else None) == (set(header.split(", ")) if header else None)
    assert "x-evil" not in answer.headers


def test_tools_have_foreign_fields_too() -> None:
    ignored = IgnoredFields()
    tool = {"type": "function", "function": {"name": "f", "cache_control": {"a": 1}}, "cache_control": {"a": 1}}
    validate({"messages": [USER], "tools": [tool]}, ChatBody, strict=True, ignored=ignored)
    assert ignored.header == "cache_control"


@pytest.mark.parametrize(
    ("messages", "param", "says"),
    [
        ([USER | {"nmae": "a"}], "messages[0].nmae", "'name'"),
        ([USER | {"nam": "a"}], "messages[0].nam", "'name'"),
        ([USER | {"contents": "a"}], "messages[0].contents", "'content'"),
        ([USER | {"cintent": "a"}], "messages[0].cintent", "'content'"),
        ([USER | {"content_": "a"}], "messages[0].content_", "'content'"),
        ([USER | {"roles": "a"}], "messages[0].roles", "'role'"),
        (_with_turn(reasoning_contents="a"), "messages[1].reasoning_contents", "'reasoning_content'"),
        ([{"role": "user", "context": "a"}], "messages[0].content", "empty"),
        *(([USER | {name: ["a"]}], f"messages[0].{name}", "send it as a part of content")
          for name in ("images", "image", "image_url", "imageUrl", "files", "file", "attachments", "input_image")),
        (_with_part(imageUrl="a"), "messages[0].content[0].imageUrl", "part of its own"),
        (_with_part(images=["a"]), "messages[0].content[0].images", "part of its own"),
        ([{"role": "user", "content": [{"type": "image_url", "imageUrl": {"url": IMAGE}}]}],
         "messages[0].content[0].imageUrl", "'image_url'"),
        ([USER | {"toolCallId": "a"}], "messages[0].toolCallId", "'tool_call_id'"),
        ([USER | {"Role": "a"}], "messages[0].Role", "'role'"),
        (_with_part(txt="a"), "messages[0].content[0].txt", "'text'"),
        (_with_part(image_url="a"), "messages[0].content[0].image_url", "part of its own"),
        (_with_part(input_audio={"data": "a"}), "messages[0].content[0].input_audio", "part of its own"),
        (_with_turn(tool_call=[CALL]), "messages[1].tool_call", "'tool_calls'"),
        (_with_turn(function_call={"name": "f"}), "messages[1].function_call", "isn't supported"),
        (_with_part(**{"k" * 101: 1}), "messages[0].content[0]." + "k" * 100 + "…", "long"),
    ],
)  # fmt: skip
def test_what_looks_like_ours_is_refused(client: httpx.Client, messages: Any, param: str, says: str) -> None:
    error = check_error(client.post(CHAT, json={"messages": messages}), 400, "invalid_request")
    assert error["param"] == param
    assert says in (error["message"] or "")


@pytest.mark.parametrize("fields", [{"colour": "red"}, {"index": 0}, {"uuid": "u"}, {"cache_control": {"a": 1}}])
def test_a_whole_requests_unknown_fields_stay_refused(client: httpx.Client, fields: dict[str, Any]) -> None:
    answer = client.post(CHAT, json={"messages": [USER], **fields})
    assert check_error(answer, 400, "invalid_request")["param"] == next(iter(fields))


def test_there_is_a_bound_on_names_and_on_the_header(client: httpx.Client) -> None:
    many = {"ü" * 90 + str(number): 1 for number in range(MAX_NAMES)}
    answer = client.post(CHAT, json={"messages": [USER | many] * 3})
    assert answer.status_code == 200
    assert answer.headers["x-ignored-fields"].endswith(", ...")
    assert len(answer.headers["x-ignored-fields"]) < 1100
    more = client.post(CHAT, json={"messages": [USER | many | {"one more": 1}]})
    check_error(more, 400, "invalid_request")
    check_serves_on(client)


def test_a_pages_script_may_read_the_header(client: httpx.Client) -> None:
    answer = client.post(CHAT, json={"messages": [USER | {"uuid": "u"}]}, headers={"origin": PAGE})
    assert "x-ignored-fields" in answer.headers["access-control-expose-headers"]


def test_a_refusal_is_what_the_assistant_said() -> None:
    turns = [
        {"role": "assistant", "content": None, "refusal": "I won't"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I won't"}]},
        {"role": "assistant", "content": "Sorry.", "refusal": "I won't"},
    ]
    body = validate({"messages": [USER, *turns]}, ChatBody, strict=True)
    said = ["".join(part.words for part in m.parts if part.type != "image_url") for m in body.messages[1:]]
    assert said == ["I won't", "I won't", "Sorry.\nI won't"]

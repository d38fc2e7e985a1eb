"""Good bodies with a few random changes: an answer, or one of our own refusals; never a bug's 500.

What to change is hypothesis' choice, the same at each run; a failure shows the smallest body that fails.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.dialects.test_malformed import check_error, check_serves_on
from tests.dialects.tgi.test_malformed import check as check_tgi_error
from tests.malformed_captions import CAPTIONS, IMAGE
from tests.malformed_json import CHAT, COMPLETIONS
from tests.own_lane import lane_client

NUM_EXAMPLES = 400
REFUSALS = frozenset({400, 404, 413})
TGI_REFUSALS = frozenset({422, 404, 413})
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
GOOD: tuple[tuple[str, dict[str, Any]], ...] = (
    (CHAT, {"model": "script", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stop": ["x"]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}, {
        "type": "image_url", "image_url": {"url": f"data:image/png;base64,{IMAGE}", "detail": "low"}}]}]}),
    (CHAT, {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [CALL]}, {
        "role": "tool", "tool_call_id": "c", "content": "sun"}], "tools": [TOOL], "tool_choice": {
        "type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False}),
    (CHAT, {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "hi"}], "temperature": 1,
            "top_p": 0.5, "top_k": 5, "min_p": 0.1, "seed": 7, "n": 1, "logprobs": True, "top_logprobs": 2,
            "stream": True, "stream_options": {"include_usage": True}, "metadata": {"a": "b"}}),
    (CHAT, {"messages": [{"role": "user", "content": "hi"}], "response_format": {
        "type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {
            "type": "object", "properties": {"a": {"type": "string"}}}}}}),
    (CHAT, {"messages": [{"role": "user", "content": "hi"}], "structured_outputs": {"choice": ["a", "b"]}}),
    (COMPLETIONS, {"prompt": ["hi", "there"], "n": 2, "max_tokens": 5, "stop": ["x"], "logprobs": 2, "stream": True}),
    (COMPLETIONS, {"prompt": [[5, 6], [7]], "temperature": 1, "seed": 7, "response_format": {"type": "json_object"}}),
    ("/generate", {"inputs": f"![](data:image/png;base64,{IMAGE}) hi", "parameters": {
        "max_new_tokens": 5, "stop": ["x"], "details": True, "best_of": 2, "do_sample": True, "temperature": 0.5}}),
    ("/", {"inputs": "hi", "stream": True, "parameters": {"truncate": 9, "seed": 3, "top_p": 0.5, "top_n_tokens": 2,
        "grammar": {"type": "json", "value": {"type": "object"}}, "watermark": None}, "options": {}}),
    ("/", {"inputs": {"question": "what?", "image": IMAGE}, "parameters": {"top_k": 2}, "options": {}}),
    ("/", {"inputs": IMAGE, "question": "what?", "image": IMAGE, "parameters": {}}),
    ("/", {"inputs": IMAGE, "parameters": {"max_new_tokens": 5}}),
    ("/invocations", {"prompt": "hi", "max_tokens": 5}),
    ("/tokenize", {"inputs": "hi there"}),
    (CAPTIONS, {"image": IMAGE, "style": "tags", "stream": True, "stop": "x"}),
    (CAPTIONS, {"images": [{"b64": IMAGE}, {"url": f"data:image/png;base64,{IMAGE}"}], "prompt": "what?"}),
    (CAPTIONS, {"image": IMAGE, "style": "detailed", "length": "long", "language": "de", "n": 2, "temperature": 1,
                "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "frequency_penalty": 0.5, "format": {
                    "type": "json", "schema": {"type": "object", "properties": {"a": {"type": "string"}}}}}),
    (CAPTIONS, {"image": IMAGE, "length": 50, "format": "tags", "guard": {
        "checks": ["loop", "empty"], "retries": 1}, "max_tokens": 9, "min_tokens": 1}),
    (CAPTIONS, {"image": IMAGE, "options": ["a"], "name": "Ann", "task": "od", "guard": True}),
)  # fmt: skip

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.sampled_from(["", "\0", "\ufffe", "x" * 5000, "json_schema", "function", "user", "data:,", "!fail-after 1"]),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**300, 1e308, 5e-324, -0.0]),
    st.text(max_size=20),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    ),
)
NAMES = st.one_of(
    st.sampled_from(["type", "text", "function", "json_schema", "url", "role", "n"]), st.text(max_size=9)
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) in a body."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def change(body: dict[str, Any], data: st.DataObject) -> None:
    """One change somewhere: a value replaced, left out, repeated, wrapped, deepened, or one more beside it."""
    spots = list(places(body))
    if not spots:
        return
    holder, key = data.draw(st.sampled_from(range(len(spots))).map(spots.__getitem__))
    how = data.draw(st.sampled_from(["replace", "drop", "repeat", "wrap", "name", "deepen", "add"]))
    if how == "replace":
        holder[key] = data.draw(ODD)
    elif how == "drop":
        del holder[key]
    elif how == "repeat":
        holder[key] = [copy.deepcopy(holder[key]) for _ in range(data.draw(st.integers(0, 20)))]
    elif how == "wrap":
        holder[key] = [holder[key]]
    elif how == "name":
        holder[key] = {data.draw(NAMES): holder[key]}
    elif how == "deepen":
        for _ in range(data.draw(st.sampled_from([1, 60, 70, 150, 300]))):
            holder[key] = {"a": holder[key]}
    elif isinstance(holder, dict):
        holder[data.draw(NAMES)] = data.draw(ODD)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with lane_client(tmp_path_factory.mktemp("lane")) as client:
        yield client


def check_answer(response: httpx.Response) -> None:
    if response.status_code == 200:
        return
    if "error_type" in response.json():
        kind = response.json()["error_type"]
        assert response.status_code in TGI_REFUSALS or kind == "generation", response.text
        check_tgi_error(response, response.status_code, kind)
        return
    code = response.json()["error"]["code"]
    # what a mutated text commands the scripted engine to do isn't the HTTP side's failure
    assert response.status_code in REFUSALS or code == "engine_failed", response.text
    check_error(response, response.status_code, code)


@settings(max_examples=NUM_EXAMPLES, derandomize=True, deadline=None, database=None,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])  # fmt: skip
@given(data=st.data())
def test_a_changed_body_is_answered_or_refused(client: httpx.Client, data: st.DataObject) -> None:
    path, good = data.draw(st.sampled_from(GOOD))
    body = copy.deepcopy(good)
    for _ in range(data.draw(st.integers(1, 3))):
        change(body, data)
    check_answer(client.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"}))


@settings(max_examples=NUM_EXAMPLES, derandomize=True, deadline=None, database=None)
@given(data=st.data())
def test_changed_bytes_are_answered_or_refused(client: httpx.Client, data: st.DataObject) -> None:
    path, good = data.draw(st.sampled_from(GOOD))
    body = bytearray(json.dumps(good).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        end = data.draw(st.integers(start, min(len(body), start + 9)))
        body[start:end] = data.draw(
            st.binary(max_size=6) | st.sampled_from([b'"', b"{", b"\\u0000", b"\\ud800", b"1e9"])
        )
    check_answer(client.post(path, content=bytes(body), headers={"content-type": "application/json"}))


def test_it_serves_on(client: httpx.Client) -> None:
    check_serves_on(client)

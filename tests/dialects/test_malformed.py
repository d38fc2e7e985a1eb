"""Malformed requests, one by one: a status, a code, the field's name, no word about our insides; and it serves on.

Against the real HTTP app over a real replica, in this process. `test_mutations.py` makes up more of them.
"""

import json
import re
from collections.abc import Iterator

import httpx
import pytest
from pydantic import BaseModel

from serve_app.errors import ServeAppError
from serve_app.exchange.body import Body
from tests.malformed_captions import IMAGE, caption_cases, header_cases, route_cases
from tests.malformed_chats import chat_cases
from tests.malformed_json import Case
from tests.own_lane import as_bytes, bearer, echo, own_lane

CASES = chat_cases() | caption_cases() | header_cases() | route_cases()
MOST_MESSAGE_CHARACTERS = 6000  # a path of 5,000 is told whole


def _classes(base: type) -> set[str]:
    children: list[type] = base.__subclasses__()
    return {base.__name__}.union(*(_classes(child) for child in children))


OUR_INSIDES = re.compile(
    r"Traceback|File \"|site-packages|serve_app|pydantic|starlette|uvicorn|\bline \d+, in|0x[0-9a-f]{6}|object at 0x|"
    r"127\.0\.0\.1|dict\[|instance of|\bdictionary\b|:path|" + "|".join(
        rf"\b{name}\b" for name in sorted(_classes(Body) | _classes(ServeAppError) | {BaseModel.__name__})
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        own_lane(tmp_path_factory.mktemp("lane")) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        yield client


def check_error(response: httpx.Response, status: int, code: str) -> dict[str, str | None]:
    """OpenAI's error object of this status and code, without our insides; the object."""
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, str | None] = body["error"]
    assert (response.status_code, error["code"]) == (status, code), error
    assert list(error) == ["message", "type", "param", "code"]
    assert response.headers["content-type"] == "application/json"
    message = error["message"]
    assert message
    assert len(message) < MOST_MESSAGE_CHARACTERS
    assert not OUR_INSIDES.search(f"{message} {error['param']}"), error
    return error


def check_serves_on(client: httpx.Client) -> None:
    good = client.post("/v1/chat/completions", json=echo("still here"), headers=bearer("all"))
    assert good.status_code == 200, good.text
    assert good.json()["choices"][0]["message"]["content"] == "still here"


def test_there_are_many() -> None:
    assert len(CASES) >= 300


@pytest.mark.parametrize("case", CASES.values(), ids=[name.encode("unicode_escape").decode() for name in CASES])
def test_a_malformed_request_is_refused(client: httpx.Client, case: Case) -> None:
    headers = as_bytes({**bearer("all"), "content-type": "application/json", **case.headers})
    response = client.request(case.method, case.path, content=case.content, headers=headers)
    error = check_error(response, case.status, case.code)
    assert error["param"] == case.param
    assert case.says in (error["message"] or "")
    assert case.says or (case.param or "") in (error["message"] or "")
    check_serves_on(client)


def test_what_is_odd_and_allowed(client: httpx.Client) -> None:
    """Not everything strange is wrong."""
    for body in (
        b'\xef\xbb\xbf{"model": "script", "messages": [{"role": "user", "content": "!echo last"}]}',
        b'{"messages": [{"role": "user", "content": "!echo last"}], "temperature": null, "stop": null, "n": null}',
        b'{"messages": [{"role": "user", "content": "!echo last"}], "store": false, "logit_bias": {}, "top_k": -1}',
        b'\n {"messages": [{"role": "developer", "content": "x"}, {"role": "user", "content": "!echo last"}]}\t',
        json.dumps(echo("last", messages=[{"role": "tool", "content": "\0", "tool_call_id": "c"}, {
            "role": "user", "content": "!echo last"}])).encode(),
    ):  # fmt: skip
        answer = client.post("/v1/chat/completions", content=body, headers=bearer("all"))
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == "last"


@pytest.mark.parametrize(("key", "path"), [("spent", "/v1/chat/completions"), ("blind", "/v1/captions")])
def test_a_spent_key_is_told_when_to_come_back(client: httpx.Client, key: str, path: str) -> None:
    body = echo("once") if key == "spent" else {"images": [IMAGE] * 2}
    assert client.post(path, json=body, headers=bearer(key)).status_code == 200
    refused = client.post(path, json=body, headers=bearer(key))
    check_error(refused, 429, "rate_limit_exceeded")
    assert int(refused.headers["retry-after"]) >= 1
    check_serves_on(client)

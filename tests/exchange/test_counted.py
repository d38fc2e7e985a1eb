"""What one HTTP request costs a key of its requests a minute: as many as it makes an engine answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.drawings import b64, png
from tests.own_lane import MODEL, bearer, own_lane

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "!tokens 1"}]}
CUT_SHORT = {
    "model": MODEL, "image": b64(png("red", "circle")), "max_tokens": 1,
    "guard": {"checks": ["truncated"], "retries": 2},
}  # fmt: skip
LIMIT = 60  # of the key `steady`


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    with own_lane(tmp_path) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body", "cost"),
    [
        ("/v1/chat/completions", CHAT, 1),
        ("/v1/chat/completions", CHAT | {"n": 4}, 4),
        ("/v1/completions", {"model": MODEL, "prompt": ["!tokens 1"] * 5, "n": 3}, 15),
        ("/v1/completions", {"model": MODEL, "prompt": ["!tokens 1"] * 5, "n": 3, "stream": True}, 15),
        ("/v1/captions", {"model": MODEL, "images": [b64(png("red", "circle"))] * 3}, 3),
        ("/v1/captions", {"model": MODEL, "images": [b64(png("red", "circle"))] * 2, "n": 3, "temperature": 1}, 6),
        ("/v1/captions", CUT_SHORT, 3),
        ("/generate", {"inputs": "!tokens 1", "parameters": {"best_of": 2, "do_sample": True}}, 2),
        ("/tokenize", {"inputs": "a b"}, 1),
    ],
)
def test_a_request_costs_as_much_as_it_makes_an_engine_do(
    client: httpx.Client, path: str, body: dict[str, Any], cost: int
) -> None:
    answer = client.post(path, json=body, headers=bearer("steady"))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-ratelimit-remaining-requests"] == str(LIMIT - cost)


def test_what_is_too_much_is_refused_before_any_of_it_is_begun(client: httpx.Client) -> None:
    many = {"model": MODEL, "prompt": ["!tokens 1"] * 40}
    assert client.post("/v1/completions", json=many, headers=bearer("steady")).status_code == 200
    refused = client.post("/v1/completions", json=many, headers=bearer("steady"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 10 <= int(refused.headers["retry-after"]) <= 30
    assert client.post("/v1/chat/completions", json=CHAT, headers=bearer("steady")).status_code == 200

"""Paths of other services: the hint names what does the like here, or nothing, never what is only spelt alike."""

import re
from collections.abc import Iterator

import httpx
import pytest

from serve_app.ingress.other_routes import ELSEWHERE
from serve_app.ingress.routes import ROUTES
from tests.dialects.test_malformed import check_error
from tests.own_lane import bearer, lane_client

SERVED = {(route.method, route.shown_path) for route in ROUTES}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with lane_client(tmp_path_factory.mktemp("lane")) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/responses", "POST /v1/chat/completions"),
        ("/v1/responses/resp_1", "POST /v1/chat/completions"),
        ("/v1/messages", "POST /v1/chat/completions"),
        ("/api/chat", "POST /v1/chat/completions"),
        ("/API/chat/", "POST /v1/chat/completions"),
        ("/api/generate", "POST /v1/completions"),
        ("/api/tags", "GET /v1/models"),
        ("/completion", "POST /v1/completions"),
        ("/chat/completions", "POST /v1/chat/completions"),
        ("/openai/deployments/a/chat/completions", "POST /v1/chat/completions"),
        ("/v1beta/models/a:streamGenerateContent", "POST /v1/chat/completions"),
        ("/models", "GET /v1/models"),
        ("/healthz", "GET /health"),
        ("/v1/embeddings", "nor a route like it"),
        ("/v1/audio/transcriptions", "nor a route like it"),
        ("/v1/images/generations", "nor a route like it"),
        ("/v1/moderations", "nor a route like it"),
        ("/rerank", "nor a route like it"),
        ("/v1/chat/completion", "did you mean /v1/chat/completions?"),
        ("/v1/caption", "did you mean /v1/captions?"),
        ("/V1/Models", "did you mean /v1/models?"),
        ("/generate_steam", "did you mean /generate_stream?"),
        ("/xyz", "GET /docs lists"),
        ("/" + "x" * 5000, "GET /docs lists"),
    ],
)
def test_a_path_of_another_service_is_told_what_does_the_like(client: httpx.Client, path: str, hint: str) -> None:
    for method in ("GET", "POST"):
        message = check_error(client.request(method, path), 404, "route_not_found")["message"] or ""
        assert hint in message
        assert message.count("/") <= path.count("/") + hint.count("/"), "one hint, and no list of routes"


def test_what_a_hint_names_is_served_and_what_is_served_is_nobodys_else() -> None:
    assert {tuple(like.split()) for _, _, like in ELSEWHERE if like} <= SERVED
    for paths, _, _ in ELSEWHERE:
        assert [path for _, path in SERVED if re.fullmatch(paths, path)] == []


def test_every_method_of_a_path_is_allowed(client: httpx.Client) -> None:
    refused = client.put("/")
    assert refused.status_code == 405
    assert refused.headers["allow"] == "GET, HEAD, POST"
    assert "GET, HEAD, POST" in refused.json()["error"]
    assert client.put("/v1/models/a").headers["allow"] == "GET, HEAD"
    assert client.get("/v1/requests/a", headers=bearer("all")).headers["allow"] == "DELETE"

"""A slash at a path's end, and a lane's bare prefix: answered at once, never sent on to another address."""

from collections.abc import Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from serve_app.plain_path import PlainPath
from tests.own_lane import MODEL, echo, lane_client


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with lane_client(tmp_path_factory.mktemp("lane")) as client:
        yield client


@pytest.mark.parametrize("slashes", ["", "/", "///"])
def test_a_slash_at_the_end_says_nothing(client: httpx.Client, slashes: str) -> None:
    answer = client.post(f"/v1/chat/completions{slashes}", json=echo("a b"))
    assert answer.json()["choices"][0]["message"]["content"] == "a b"
    assert client.post(f"/generate{slashes}", json={"inputs": "!echo a b"}).json() == {"generated_text": "a b"}
    assert client.get(f"/v1/models/{MODEL}{slashes}").json()["id"] == MODEL
    assert client.get(f"/health{slashes}").json() == {"status": "ok"}


def test_an_unknown_path_with_a_slash_is_no_redirect(client: httpx.Client) -> None:
    refused = client.post("/v1/chat/completion/", json={})
    assert refused.status_code == 404
    assert "no route /v1/chat/completion: did you mean" in refused.json()["error"]["message"]
    assert "location" not in refused.headers


async def test_a_bare_prefix_is_its_root() -> None:
    async def where(request: Request) -> JSONResponse:
        return JSONResponse(request.scope["path"])

    app = Starlette(routes=[Route("/", where), Route("/b", where)], middleware=[Middleware(PlainPath)])
    transport = httpx.ASGITransport(app, root_path="/a")
    async with httpx.AsyncClient(transport=transport, base_url="http://lane") as client:
        seen = [(await client.get(path)).json() for path in ("/a", "/a/", "/a/b", "/a/b/")]
    assert seen == ["/a/", "/a/", "/a/b", "/a/b"]

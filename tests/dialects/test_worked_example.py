"""The dialect of docs/architecture.md works as it stands there: it is added to the table of routes and asked."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.exchange.route import Route
from serve_app.ingress import app, routes
from tests.own_lane import MODEL, bearer, own_lane

PAGE = Path(__file__).parent.parent.parent / "docs" / "architecture.md"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {"__name__": "say"}
    exec(example, names)
    table: tuple[Route, ...] = (*routes.ROUTES, *names["ROUTES"])
    for module in (app, routes):
        monkeypatch.setattr(module, "ROUTES", table)
    monkeypatch.setattr("tests.own_lane.PageCheck", lambda app, _: app)  # it knows the committed rows alone
    with own_lane(tmp_path) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        yield client


def test_it_answers(client: httpx.Client) -> None:
    answer = client.post("/say", json={"text": "!echo good day", "model": MODEL}, headers=bearer("all"))
    assert (answer.status_code, answer.json()) == (200, {"reply": "good day"}), answer.text


def test_keys_limits_and_unknown_fields_follow_from_the_row(client: httpx.Client) -> None:
    body = {"text": "!echo hi"}
    assert client.post("/say", json=body).json()["error"]["code"] == "invalid_api_key"
    statuses = [client.post("/say", json=body, headers=bearer("spent")).status_code for _ in range(2)]
    assert statuses == [200, 429]
    refused = client.post("/say", json=body | {"txt": "x"}, headers=bearer("all"))
    assert refused.status_code == 400
    assert "did you mean 'text'" in refused.json()["error"]["message"]


def test_it_stands_in_the_description_of_the_api(client: httpx.Client) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/say"]["post"]
    assert operation["summary"] == "Answer a text with a text."
    assert operation["responses"].keys() == {"200", "4XX", "5XX"}

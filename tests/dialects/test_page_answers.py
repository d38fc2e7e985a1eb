"""Answers and the OpenAPI page: what isn't on it is seen, and what schemathesis sends is answered as it says."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serve_app.ingress.routes import ROUTES
from tests.own_lane import bearer, own_lane
from tests.page_check import PAGE, mistakes

NUM_EXAMPLES = 10  # of each route
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
HEALTH = {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path", "status", "media_type", "value", "is_on_page"),
    [
        ("GET", "/health", 200, "application/json", HEALTH, True),
        ("GET", "/health/", 200, "application/json", HEALTH, True),
        ("GET", "/health", 200, "application/json", HEALTH | {"more": 1}, False),
        ("GET", "/health", 200, "application/json", {}, False),
        ("GET", "/health", 302, "application/json", HEALTH, False),
        ("GET", "/health", 200, "text/plain", HEALTH, False),
        ("GET", "/ready", 503, "application/json", {"ready": False}, True),
        ("GET", "/ready", 404, "application/json", {"ready": False}, False),
        ("PUT", "/health", 405, "application/json", {"error": "a", "error_type": "b"}, True),
        ("GET", "/nowhere", 404, "application/json", {"message": "a"}, False),
        ("GET", "/docs", 200, "text/html", "a page", True),
    ],
)
def test_what_isnt_on_the_page_is_seen(
    method: str, path: str, status: int, media_type: str, value: Any, is_on_page: bool
) -> None:
    assert (not list(mistakes(method, path, status, media_type, json.dumps(value).encode()))) is is_on_page


def test_an_event_that_isnt_on_the_page_is_seen() -> None:
    stream = b'data: {"object": "caption.chunk", "index": 0, "delta": "a"}\n\ndata: [DONE]\n\n'
    assert list(mistakes("POST", "/v1/captions", 200, "text/event-stream", stream)) == []
    for wrong in (stream.replace(b"delta", b"text"), stream.replace(b"0", b'"0"'), b"data: {}\n\n"):
        assert len(list(mistakes("POST", "/v1/captions", 200, "text/event-stream", wrong))) == 1


def test_every_route_says_what_it_answers() -> None:
    assert [route.path for route in ROUTES if route.answer is None] == ["/generate_stream"], "it only streams"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_lane(tmp_path_factory.mktemp("lane")) as url:
        yield str(url)


SCHEMA = schemathesis.openapi.from_dict(PAGE)
SCHEMA.config.phases.coverage.enabled = False  # thousands of cases; `test_malformed.py` has the bounds of every field


@SCHEMA.parametrize()
@settings(max_examples=NUM_EXAMPLES, derandomize=True, deadline=None, database=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
def test_what_schemathesis_sends_is_answered_as_the_page_says(url: str, case: Any) -> None:
    case.call_and_validate(base_url=url, headers=bearer("all"), checks=CHECKS)

"""The lane's own OpenAPI page: valid, complete, and what it allows is answered or refused, never a bug's 500."""

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import openapi_spec_validator
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from serve_app.ingress.openapi import document
from serve_app.ingress.routes import ROUTES
from tests.dialects.test_mutations import GOOD, check_answer
from tests.malformed_captions import IMAGE
from tests.own_lane import bearer, own_lane

NUM_EXAMPLES = 150
WORDS = ("script", "hi", "!echo hi", f"data:image/png;base64,{IMAGE}", "ftp://a/b", "{}", "a+", "\0")
PAGE = document(ROUTES, "")
OPERATIONS = [(m.upper(), path, about) for path, several in PAGE["paths"].items() for m, about in several.items()]


def schema_of(path: str) -> dict[str, Any]:
    """The JSON schema of what a route reads, which can be used by itself."""
    body: dict[str, Any] = PAGE["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return body | {"components": PAGE["components"]}


def values_of(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a schema of the page allows: of JSON Schema what pydantic writes."""
    if reference := schema.get("$ref"):
        return st.deferred(lambda: values_of(PAGE["components"]["schemas"][reference.rpartition("/")[2]]))
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return st.one_of([values_of(one) for one in schema[several]])
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    if kind == "object":
        fields, needed = schema.get("properties", {}), schema.get("required", [])
        return st.fixed_dictionaries(
            {name: values_of(fields[name]) for name in needed},
            optional={name: values_of(about) for name, about in fields.items() if name not in needed},
        )
    if kind == "array":
        return st.lists(values_of(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)
    if kind == "string":
        texts = st.one_of(st.text(max_size=20), st.sampled_from(WORDS))
        return texts.filter(lambda text: len(text) >= schema.get("minLength", 0))
    least, most = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum", 2**31 - 1)
    if kind == "integer":
        return st.integers(least, most)
    if kind == "number":
        return st.floats(least, most, allow_nan=False, allow_infinity=False)
    return {"boolean": st.booleans(), "null": st.none()}[str(kind)]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        own_lane(tmp_path_factory.mktemp("lane")) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
    ):
        yield client


def test_the_page_is_valid_openapi() -> None:
    openapi_spec_validator.validate(PAGE)
    assert PAGE["openapi"].startswith("3.1")


def test_every_route_is_on_the_page_and_every_post_says_what_it_reads() -> None:
    on_page = sorted((method, path) for method, path, _ in OPERATIONS)
    assert on_page == sorted((route.method, route.shown_path) for route in ROUTES)
    names = [about["operationId"] for _, _, about in OPERATIONS]
    assert len(set(names)) == len(names)
    for method, path, about in OPERATIONS:
        assert about["summary"], path
        assert "`" not in about["summary"]
        assert ("requestBody" in about) == (method == "POST"), path
    assert not [name for name in PAGE["components"]["schemas"] if "__" in name], "two types have one name"


def test_the_page_is_served_to_anyone_and_by_the_address_it_is_reached_at(client: httpx.Client) -> None:
    told = client.get("/openapi.json").json()
    assert told == PAGE
    assert document(ROUTES, "/models/a")["servers"] == [{"url": "/models/a"}]


def test_people_read_the_same_page(client: httpx.Client) -> None:
    class Reader(HTMLParser):
        text, sources = "", list[str]()

        def handle_data(self, data: str) -> None:
            self.text += data

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.sources += [tag] if tag in ("script", "link", "img", "iframe") else []

    answer = client.get("/docs")
    reader = Reader()
    reader.feed(answer.text)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not reader.sources
    for name in ("/v1/captions", "/generate_stream", "max_completion_tokens", "required", "above 0"):
        assert name in reader.text


@pytest.mark.parametrize(("path", "body"), GOOD)
def test_good_bodies_are_what_the_page_allows(path: str, body: dict[str, Any]) -> None:
    Draft202012Validator(schema_of(path)).validate(body)


@settings(max_examples=NUM_EXAMPLES, derandomize=True, deadline=None, database=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(data=st.data())
def test_what_the_page_allows_is_answered_or_refused(client: httpx.Client, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from([path for method, path, _ in OPERATIONS if method == "POST"]))
    body = data.draw(values_of(PAGE["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]))
    check_answer(client.post(path, json=body, headers=bearer("all")))

"""Every feature of JSON schema is kept by whatever comes out, or refused by its name."""

import contextlib
import copy
import json
import random
import sys
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from serve_app.engines.grammar.schemas.kept import kept_schema
from serve_app.engines.grammar.source import LIMITS, grammar_source, is_json, schema_source
from serve_app.engines.transformers.output_grammar import GrammarCompiler
from serve_app.errors import InvalidRequest
from serve_app.messages import OutputFormat
from tests import tiny_models
from tests.schema_cases import KEPT, KEPT_OF_OTHER_DRAFTS, REFUSED

BYTES = LLTokenizer("byte")
NUM_WALKS, LONGEST_WALK = 20, 1000


def matcher_of(schema: dict[str, Any]) -> LLMatcher:
    matcher = LLMatcher(BYTES, schema_source(copy.deepcopy(schema)), log_level=0, limits=LIMITS)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def walk(matcher: LLMatcher, chance: random.Random) -> str | None:
    """A random text of the grammar, byte by byte; None where it found no end."""
    text = bytearray()
    while len(text) < LONGEST_WALK:
        mask = matcher.compute_bitmask()
        assert not matcher.is_error()
        may_come = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
        if matcher.is_stopped() or (matcher.is_accepting() and (not may_come or chance.random() < 0.5)):
            return text.decode()
        plain = [byte for byte in may_come if 32 <= byte < 127]
        ends = [byte for byte in b'"}]' if byte in may_come] if len(text) > 30 else []
        byte = chance.choice(
            ends if ends and chance.random() < 0.6 else plain if chance.random() < 0.9 and plain else may_come
        )
        text.append(byte)
        assert matcher.consume_token(byte)
    return None


@pytest.mark.parametrize("name", [*KEPT, *KEPT_OF_OTHER_DRAFTS])
def test_what_comes_out_fits_the_schema(name: str) -> None:
    schema, checked = KEPT_OF_OTHER_DRAFTS.get(name) or (KEPT[name], KEPT[name])
    matcher = matcher_of(schema)
    kind = jsonschema.Draft202012Validator
    validator = kind(checked, format_checker=kind.FORMAT_CHECKER)
    texts = [walk(matcher.deep_copy(), random.Random(seed)) for seed in range(NUM_WALKS)]
    ended = [text for text in texts if text is not None]
    assert len(ended) > NUM_WALKS / 2
    for text in ended:
        validator.validate(json.loads(text))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_by_its_name(name: str) -> None:
    schema, named = REFUSED[name]
    with pytest.raises(InvalidRequest) as refused:
        GrammarCompiler(tiny_models.tokenizer(), frozenset([2])).compile(
            OutputFormat("json_schema", json.dumps(schema))
        )
    assert named in refused.value.message
    assert refused.value.param == "response_format"
    assert "\n" not in refused.value.message


def test_every_value_of_a_list_stays_possible() -> None:
    values = KEPT["enum of everything"]["enum"]
    texts = {walk(matcher_of({"enum": values}), random.Random(seed)) for seed in range(200)}
    assert {json.dumps(json.loads(text)) for text in texts if text} == {json.dumps(value) for value in values}


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"a":1,"b":[1,2]}', True),
        ('{"a": 1, "b": [1, 2]}', True),  # as json.dumps writes it
        ('{ "a": 1, "b": [1, 2]}', False),
        ('{"a":  1, "b": [1, 2]}', False),
        ('{"a": 1,\n"b": [1, 2]}', False),
        ('{"a": 1, "b": [1, 2], "c": 3}', False),  # fields that nobody listed would have no end
    ],
)
def test_json_is_compact_and_has_the_listed_fields(text: str, fits: bool) -> None:
    listed = {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "integer"}}}
    matcher = matcher_of({"type": "object", "properties": listed, "required": ["a"]})
    assert (matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()) is fits


@pytest.mark.parametrize(
    ("kind", "spec", "is_a_schemas"),
    [("json_schema", "{}", True), ("json_object", "", True), ("regex", "[a-z]+", False), ("choice", '["a"]', False)],
)
def test_only_json_is_ended_in_time(kind: Any, spec: str, is_a_schemas: bool) -> None:
    assert is_json(grammar_source(OutputFormat(kind, spec))) is is_a_schemas


def test_fields_that_are_asked_for_stay_open() -> None:
    open_ = {"type": "object", "properties": {"a": {"const": 1}}, "additionalProperties": True}
    assert matcher_of(open_).consume_tokens(list(b'{"a":1,"b":2}'))


def test_a_chain_of_references_takes_no_time_to_refuse_or_to_keep() -> None:
    chain = {f"d{number}": {"$ref": f"#/$defs/d{number + 1}"} for number in range(1500)}
    schema: dict[str, Any] = {"$ref": "#/$defs/d0", "$defs": chain | {"d1500": {"const": 1}}}
    assert kept_schema(schema)["$defs"]["d1500"] == {"enum": [1]}
    loop: dict[str, Any] = {"$ref": "#/$defs/d0", "$defs": chain | {"d1500": {"$ref": "#/$defs/d0"}}}
    with pytest.raises(ValueError, match="leads back to itself"):
        kept_schema(loop)


def layers(num_wide: int, last: dict[str, Any]) -> dict[str, Any]:
    """Definitions of which each leads to the next in so many ways: far too many to walk them all."""
    wide = {str(number): {"anyOf": [{"$ref": f"#/$defs/{number + 1}"}] * num_wide} for number in range(3)}
    return wide | {"3": last}


def fields_of(schema: dict[str, Any]) -> dict[str, Any]:
    names = [f"p{number}" for number in range(100)]
    return {"type": "object", "properties": dict.fromkeys(names, schema), "required": names}


LABORIOUS = {
    "references": {"oneOf": [{"$ref": "#/$defs/0"}, {"type": "null"}], "$defs": layers(400, {"type": "string"})},
    "fields": {
        "oneOf": [{"$ref": "#/$defs/a0"}, {"$ref": "#/$defs/b0"}],
        "$defs": {f"{side}{n}": fields_of({"$ref": f"#/$defs/{side}{n + 1}"}) for side in "ab" for n in range(4)}
        | {"a4": {"type": "string"}, "b4": {"type": "string"}},
    },
    "pairs": {"properties": {str(number): {"oneOf": [{"const": n} for n in range(128)]} for number in range(30)}},
    "one large object many times": {
        "oneOf": [{"allOf": [{"$ref": "#/$defs/0"}] * 2500}, {"type": "null"}],
        "$defs": {"0": {"type": "object", "required": [f"p{number}" for number in range(2000)]}},
    },
}


@pytest.mark.parametrize("name", LABORIOUS)
def test_no_schema_takes_much_work(name: str) -> None:
    """Counted in calls of Python's functions, so that a busy machine doesn't matter."""
    schema, num_calls = json.loads(json.dumps(LABORIOUS[name])), 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal num_calls
        num_calls += event == "call"
        if num_calls > 500_000:
            raise TimeoutError

    sys.setprofile(count)
    try:
        with contextlib.suppress(ValueError):  # it may be kept or refused
            kept_schema(schema)
    finally:
        sys.setprofile(None)
    assert num_calls > 10


def test_a_name_that_all_others_are_joined_to_is_short() -> None:
    with pytest.raises(ValueError, match=r"\$id: .* leave it out"):
        kept_schema({"$id": "a/" * 10_000, "$defs": [{"$id": "a"}] * 2000})


@pytest.mark.parametrize("by_reference", [True, False])
def test_one_of_in_a_web_of_references_is_still_told_apart(by_reference: bool) -> None:
    wide = {"0": {"anyOf": [{"$ref": "#/$defs/1"}] * 400}, "1": {"type": "string"}}
    other: dict[str, Any] = {"$ref": "#/$defs/2"} if by_reference else {"type": "null"}
    kept_schema({"oneOf": [{"$ref": "#/$defs/0"}, other], "$defs": wide | {"2": {"type": "null"}}})


def test_only_composed_objects_are_left_open() -> None:
    single = {"allOf": [{"$ref": "#/$defs/e"}], "description": "as pydantic 1 writes a field with a default"}
    closed_ = {"type": "object", "properties": {"a": {"type": "string"}, "b": single, "c": {"$ref": "#/$defs/o"}}}
    part = {"properties": {"x": {"properties": {"y": {"type": "string"}}}, "z": {"properties": {"v": {}}}}}
    other = {"properties": {"x": {"properties": {"w": {"type": "string"}}}}}
    document = {
        **closed_,
        "required": ["a", "b"],
        "$defs": {"e": {"enum": ["p", "q"]}, "o": {"allOf": [{"$ref": "#/$defs/m"}, other]}, "m": part},
    }
    kept = kept_schema(copy.deepcopy(document))
    composed_ = kept["$defs"]["m"]
    assert kept["additionalProperties"] is False
    assert "additionalProperties" not in composed_
    assert "additionalProperties" not in composed_["properties"]["x"]  # both speak of it
    assert composed_["properties"]["z"]["additionalProperties"] is False


@pytest.mark.parametrize("keyword", ["enum", "const", "maxLength", "minItems", "minimum", "multipleOf"])
@pytest.mark.parametrize("number", [10**400, -(10**400), "1e400"], ids=["large", "small", "float"])
def test_numbers_beyond_every_float_are_refused_by_their_keyword(keyword: str, number: int | str) -> None:
    value = f"[{number}]" if keyword == "enum" else number
    with pytest.raises(InvalidRequest, match=keyword):
        grammar_source(OutputFormat("json_schema", f'{{"{keyword}": {value}}}'))


def test_references_lead_into_one_of() -> None:
    one_of = {"oneOf": [{"type": "string", "maxLength": 1}, {"type": "null"}]}
    fields = {"a": {"$ref": "#/properties/b/oneOf/0"}, "b": one_of}
    matcher = matcher_of({"type": "object", "properties": fields, "required": ["a", "b"]})
    assert matcher.consume_tokens(list(b'{"a": "x", "b": null}'))
    assert matcher.is_accepting()

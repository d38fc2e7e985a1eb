"""Every feature of JSON schema is kept by whatever comes out, or refused by its name."""

import copy
import json
import random
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher, LLTokenizer

from serve_app.engines.grammar_source import LIMITS, grammar_source, is_json, schema_source
from serve_app.engines.output_grammar import GrammarCompiler
from serve_app.errors import InvalidRequest
from serve_app.messages import OutputFormat
from serve_app.schemas.kept import kept_schema
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

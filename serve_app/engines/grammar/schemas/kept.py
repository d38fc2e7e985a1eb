"""Which JSON schemas an answer can be held to: the others are refused by their keyword, before any engine.

A grammar writes an answer from left to right, so it can't count names, compare items or look back. What is left is
written in the words that grammars know, so that an answer that fits also ends: an object takes the fields that are
listed and no others unless the schema says so. Knows no engine.
"""

import math
from typing import Any
from urllib.parse import quote

from serve_app.engines.grammar.schemas.composed import composed
from serve_app.engines.grammar.schemas.document import Document, Node, Schema
from serve_app.engines.grammar.schemas.ends import check_ends
from serve_app.engines.grammar.schemas.unions import Unions
from serve_app.engines.grammar.schemas.values import (
    ALL_TYPES,
    DATE_TIME,
    TIME,
    fitting,
    is_exact_fraction,
    types_of,
    whole,
)
from serve_app.output_format import check_pattern

_NEVER_KEPT = (
    "not", "if", "contains", "uniqueItems", "propertyNames", "dependentRequired", "dependentSchemas", "dependencies",
    "unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef", "extends", "disallow", "divisibleBy",
)  # fmt: skip
_NOTHING_WITHOUT = {"then": "if", "else": "if", "minContains": "contains", "maxContains": "contains"}
_APPLIED_IN_PLACE = ("$ref", "allOf", "anyOf", "oneOf")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_LARGEST_INTEGER, _LARGEST_FLOAT, _LARGEST_COUNT = 2**63, 2**53, 2**31
_FORMAT_PATTERNS = {"time": TIME, "date-time": DATE_TIME}
_DRAFTS = ("http://json-schema.org/", "https://json-schema.org/")


def kept_schema(schema: Schema) -> Schema:
    """The schema as grammars know it, changed in place. Raises `ValueError` naming the keyword that none keeps."""
    document = Document(schema)
    nodes = list(document.nodes())
    for node in nodes:
        _simplify(node)
    _check_one_of(nodes, document)
    check_ends(nodes, document)
    open_ = composed(nodes, document)
    for node in nodes:
        if id(node.schema) not in open_:
            _close(node.schema)
    return schema


def _simplify(node: Node) -> None:
    """What other drafts say in other words, in those of the latest; what says nothing is taken out."""
    schema = node.schema
    schema.pop("x-guidance", None)  # llguidance's own settings are not the client's
    if not str(schema.get("$schema", "")).startswith(_DRAFTS):
        schema.pop("$schema", None)
    if "$ref" in schema:
        schema["$ref"] = quote(schema["$ref"], safe="#/%~$!&'()*+,;=:@?-._")  # names with blanks in them
    _check_keywords(node)
    _check_types(node)
    _check_counts(node)
    _check_bounds(node)
    _check_values(node)
    _check_texts(node)


def _check_keywords(node: Node) -> None:
    schema = node.schema
    for keyword, other in _NOTHING_WITHOUT.items():
        if other not in schema:
            schema.pop(keyword, None)
    if "then" not in schema and "else" not in schema:
        schema.pop("if", None)
    if not any(keyword in schema for keyword in _APPLIED_IN_PLACE):
        for keyword, older in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
            if keyword in schema:
                schema.setdefault(older, schema.pop(keyword))
    for keyword in _NEVER_KEPT:
        if keyword in schema and not _says_nothing(schema, keyword):
            raise node.refusal(keyword, "no answer can be held to it as it is written: leave it out")
        schema.pop(keyword, None)


def _says_nothing(schema: Schema, keyword: str) -> bool:
    value = schema[keyword]
    if keyword == "uniqueItems":
        return value is False or schema.get("maxItems") in (0, 1)
    if keyword in ("propertyNames", "unevaluatedItems", "unevaluatedProperties"):
        return value in (True, {}, {"type": "string"})
    return keyword.startswith("depend") and value == {}


def _check_types(node: Node) -> None:
    type_names = node.schema.get("type", "object")
    names = type_names if isinstance(type_names, list) else [type_names]
    if not names or any(not isinstance(name, str) or name not in ALL_TYPES for name in names):
        raise node.refusal("type", f"it is one of {', '.join(sorted(ALL_TYPES))}, or a list of them")
    required = node.schema.get("required", [])
    if not (isinstance(required, list) and all(isinstance(name, str) for name in required)):
        raise node.refusal("required", "it is a list of names")
    for keyword in ("anyOf", "oneOf"):
        if node.schema.get(keyword) == []:
            raise node.refusal(keyword, "it is empty, so that nothing fits")


def _check_counts(node: Node) -> None:
    schema = node.schema
    for keyword in _COUNTS:
        if keyword in schema:
            value = whole(schema[keyword])
            if value is None or not 0 <= value < _LARGEST_COUNT:
                raise node.refusal(keyword, "it is a whole number, 0 or more")
            schema[keyword] = value
    if schema.get("minProperties", 0) > max(1, len(set(schema.get("required", [])))):
        raise node.refusal("minProperties", "names can't be counted as they are written: list them in required")


def _check_bounds(node: Node) -> None:
    schema = node.schema
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(schema.get(exclusive), bool):  # draft 4: it says how the other is meant
            is_exclusive = schema.pop(exclusive)
            if is_exclusive and bound in schema:
                schema[exclusive] = schema.pop(bound)
    for keyword in _BOUNDS:
        value = schema.get(keyword, 0)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise node.refusal(keyword, "it is a number")
        if abs(value) >= (_LARGEST_INTEGER if isinstance(value, int) else _LARGEST_FLOAT):
            raise node.refusal(keyword, "it is too large a number")
    if "multipleOf" in schema and not is_exact_fraction(schema["multipleOf"]):
        raise node.refusal("multipleOf", "it is a number above 0 that a float holds exactly, as 5 or 0.25")
    _check_room(node)
    if schema.get("type") == "integer" and not ("enum" in schema or "const" in schema):
        _bound_integer(schema)


def _bound_integer(schema: Schema) -> None:
    """Its digits have an end, and every reader reads it as it is written (RFC 8259, 6)."""
    if not ("minimum" in schema or "exclusiveMinimum" in schema):
        schema["minimum"] = min(1 - _LARGEST_FLOAT, schema.get("maximum", 0), schema.get("exclusiveMaximum", 1) - 1)
    if not ("maximum" in schema or "exclusiveMaximum" in schema):
        schema["maximum"] = max(_LARGEST_FLOAT - 1, schema.get("minimum", 0), schema.get("exclusiveMinimum", -1) + 1)


def _check_room(node: Node) -> None:
    """Refuse a number's bounds between which there is none."""
    schema = node.schema
    low = max(schema.get("minimum", -math.inf), schema.get("exclusiveMinimum", -math.inf))
    high = min(schema.get("maximum", math.inf), schema.get("exclusiveMaximum", math.inf))
    if types_of(schema) == {"integer"} and math.isfinite(low) and math.isfinite(high):
        low = math.floor(low) + 1 if low == schema.get("exclusiveMinimum") else math.ceil(low)
        high = math.ceil(high) - 1 if high == schema.get("exclusiveMaximum") else math.floor(high)
    if low > high and types_of(schema) <= {"integer", "number"}:
        raise node.refusal("minimum", "no number is left between it and the maximum")


def _check_values(node: Node) -> None:
    """`const` and `enum` as one list, of the values that the type allows."""
    schema = node.schema
    if not ("const" in schema or "enum" in schema):
        return
    keyword = "const" if "const" in schema else "enum"
    listed = schema.get("enum", [schema.get("const")])
    if not isinstance(listed, list) or not listed:
        raise node.refusal("enum", "it is a list of values, at least one")
    values = fitting([schema["const"]] if keyword == "const" else listed, listed, types_of(schema))
    if values is None:
        raise node.refusal(keyword, "it has a number that no float holds exactly")
    if not values:
        raise node.refusal(keyword, "none of its values fits what stands beside it")
    for name in ("const", "type"):
        schema.pop(name, None)
    schema["enum"] = values


def _check_texts(node: Node) -> None:
    schema = node.schema
    patterns = [("pattern", schema["pattern"])] if "pattern" in schema else []
    patterns += [("patternProperties", pattern) for pattern in schema.get("patternProperties", {})]
    for keyword, pattern in patterns:
        if not isinstance(pattern, str):
            raise node.refusal(keyword, "it is a text")
        try:
            check_pattern(pattern)
        except ValueError as exc:
            raise node.refusal(keyword, str(exc)) from exc
    format_name = schema.get("format")
    if isinstance(format_name, str) and format_name in _FORMAT_PATTERNS:
        del schema["format"]
        if "pattern" in schema:
            schema["allOf"] = [*schema.get("allOf", []), {"pattern": _FORMAT_PATTERNS[format_name]}]
        else:
            schema["pattern"] = _FORMAT_PATTERNS[format_name]


def _check_one_of(nodes: list[Node], document: Document) -> None:
    """One of several that can't hold at once is any of them, as grammars take it; for others they have no words."""

    def followed(schema: Any) -> Any:
        return document.target(Node(schema, ""))

    unions = Unions(followed)
    for node in nodes:
        branches = node.schema.get("oneOf")
        if branches is not None and ("anyOf" in node.schema or not unions.are_apart(branches)):
            raise node.refusal(
                "oneOf", "several of its schemas could hold at once: use anyOf, or a field that tells them"
            )


def _close(schema: Schema) -> None:
    listed = schema.get("properties")
    if listed and "patternProperties" not in schema and set(schema.get("required", [])) <= listed.keys():
        schema.setdefault("additionalProperties", False)

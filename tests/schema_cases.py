"""JSON schemas by feature: those that an answer is held to, and those that are refused, with what names the fault."""

from typing import Any


def closed(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def one_field(name: str, value: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"const": value}}, "required": [name]}


def text(pattern: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern, **more}


def listed(**more: Any) -> dict[str, Any]:
    return {"type": "array", **more}


DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}

KEPT: dict[str, dict[str, Any]] = {
    "all of two objects": {"allOf": [one_field("a", 1), one_field("b", 2)]},
    "all of references": {
        "allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        "$defs": {"a": one_field("a", 1), "b": one_field("b", 2)},
    },
    "all of types": {"allOf": [{"type": "string"}, {"enum": ["yes", "no", 1]}]},
    "all of bounds": {"allOf": [{"type": "integer", "minimum": 1}, {"maximum": 3}]},
    "all of patterns": {"allOf": [text("^a"), {"pattern": "b$"}, {"maxLength": 4}]},
    "required and not listed": {"type": "object", "required": ["z"]},
    "required and partly listed": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a", "z"]},
    "enum beside type": {"type": "string", "enum": [1, "a"]},
    "enum beside types": {"type": ["string", "null"], "enum": [1, "a", None, True]},
    "enum of whole numbers": {"type": "integer", "enum": [1.0, 2, 2.5]},
    "enum beside pattern": {"enum": ["abc", "b"], "pattern": "^a"},
    "enum beside minimum": {"enum": [1, 5, 9], "minimum": 4},
    "enum of everything": {"enum": [1, "1", None, True, [], {}, 1.5, {"a": [1, {"b": "c d"}]}]},
    "a huge enum": {"enum": [f"value-{number}" for number in range(3000)]},
    "const": {"const": 'é"\\\n\u2028\U0001f600'},
    "const beside enum": {"const": 1, "enum": [1, 2]},
    "recursion": closed(a={"anyOf": [{"$ref": "#"}, {"type": "null"}]}),
    "recursion of lists": listed(items={"$ref": "#"}, maxItems=1),
    "a reference with a blank": {"$ref": "#/$defs/x y", "$defs": {"x y": {"const": 1}}},
    "a reference with escapes": {"$ref": "#/$defs/a~1b~0c", "$defs": {"a/b~c": {"const": 1}}},
    "a reference beside a bound": {
        "$ref": "#/$defs/x",
        "minimum": 3,
        "$defs": {"x": {"type": "integer", "maximum": 4}},
    },
    "an anchor": {"$ref": "#foo", "$defs": {"x": {"$anchor": "foo", "const": 1}}},
    "an own address": {"$id": "http://a/b", "$ref": "c", "$defs": {"x": {"$id": "c", "const": 1}}},
    "a draft of one's own": {"$schema": "http://a/draft", "type": "boolean"},
    "patterns without ends": text("ab", maxLength=4),
    "patterns with ends inside": text("(^a$)|(^b$)"),
    "lazy patterns": text("^a+?b*?$", maxLength=6),
    "patterns beside lengths": text("^a*$", minLength=2, maxLength=3),
    "classes": text("^\\d\\w\\s[^a]$"),
    "quotes": text('^["\\\\]{2}$'),
    "lengths": {"type": "string", "minLength": 2.0, "maxLength": 3},
    "numbers": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2.25},
    "whole numbers": {"type": "integer", "exclusiveMinimum": 0, "maximum": 2.5},
    "any whole number": {"type": "integer"},
    "multiples": {"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 30},
    "multiples of a half": {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 2},
    "items by place": listed(prefixItems=[{"const": 1}], items={"const": 3}, minItems=2, maxItems=3),
    "items that may repeat": listed(uniqueItems=False, items={"enum": [1, 2]}, maxItems=3),
    "one item": listed(uniqueItems=True, items={"enum": [1, 2]}, maxItems=1),
    "no items": listed(items=False),
    "fields by pattern": {
        "type": "object",
        "patternProperties": {"^a": {"const": 1}},
        "additionalProperties": {"const": 2},
        "maxProperties": 3,
    },
    "other fields": {"type": "object", "additionalProperties": DIGIT, "minProperties": 1, "maxProperties": 2},
    "names in unicode": closed(**{"é": DIGIT, "漢 字": DIGIT, 'a"b\\': DIGIT, "\n": DIGIT, "": DIGIT}),
    "any of": {"type": "integer", "anyOf": [{"minimum": 5, "maximum": 6}, {"maximum": 2, "minimum": 1}]},
    "any of objects": one_field("a", 1) | {"anyOf": [one_field("b", 2), one_field("c", 3)]},
    "one of values": {"oneOf": [{"const": 1}, {"const": 2}]},
    "one of types": {"oneOf": [DIGIT, {"type": "string", "maxLength": 3}, {"type": "null"}]},
    "one of objects by a tag": {"oneOf": [closed(t={"const": "a"}, x=DIGIT), closed(t={"const": "b"}, y=DIGIT)]},
    "one of objects by their fields": {"oneOf": [closed(x=DIGIT), closed(y=DIGIT)]},
    "one of references": {
        "oneOf": [{"type": "null"}, {"$ref": "#/$defs/a"}],
        "$defs": {"a": closed(a=DIGIT)},
    },
    "nothing said": {"if": {"const": 1}, "minContains": 3, "dependentRequired": {}, **DIGIT},
    "fields not evaluated": {
        "type": "object",
        "properties": {"a": {"const": 1}},
        "unevaluatedProperties": False,
    },
    "annotations": DIGIT | {"title": "x", "default": 3, "examples": [1], "x-own": 1, "nullable": True},
    "settings of a library": {"x-guidance": {"lenient": True}, **closed(a={"const": 1})},
    **{
        f"format {name}": {"type": "string", "format": name} for name in ("date", "time", "date-time", "uuid", "ipv4")
    },
    "a format beside a pattern": {"type": "string", "format": "date-time", "pattern": "^2024"},
}

# What the checker of the tests doesn't know; read as the draft says that has it.
KEPT_OF_OTHER_DRAFTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "items of draft 7": (
        listed(items=[{"const": 1}], additionalItems={"const": 9}, minItems=2, maxItems=3),
        listed(prefixItems=[{"const": 1}], items={"const": 9}, minItems=2, maxItems=3),
    ),
    "an exclusive minimum of draft 4": (
        DIGIT | {"exclusiveMinimum": True},
        DIGIT | {"exclusiveMinimum": 0},
    ),
    "a maximum that isn't exclusive": (DIGIT | {"exclusiveMaximum": False}, DIGIT),
    "unicode's classes": (text("^\\p{Lu}\\p{Nd}$"), text("^[^\\W\\d_]\\d$")),
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "itself": ({"$ref": "#"}, "$ref"),
    "itself by name": ({"$ref": "#/$defs/n", "$defs": {"n": {"$ref": "#/$defs/n"}}}, "$ref"),
    "itself or another": (
        {"$ref": "#/$defs/n", "$defs": {"n": {"anyOf": [{"$ref": "#/$defs/n"}, {"const": 1}]}}},
        "$ref",
    ),
    "no end": ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "$ref"),
    "elsewhere": ({"$ref": "http://127.0.0.1/schema.json"}, "$ref"),
    "a file": ({"$ref": "file:///etc/passwd"}, "$ref"),
    "nowhere": ({"$ref": "#/$defs/none"}, "$ref"),
    "a number as reference": ({"$ref": 5}, "$ref"),
    "dynamic": ({"$dynamicRef": "#foo"}, "$dynamicRef"),
    "look-ahead": (text("^(?=a)a{2}$"), "pattern: no answer can be held to a look-ahead"),
    "look-behind": (text("^a(?<!b)$"), "look-behind"),
    "back-reference": (text("^(a|b)\\1$"), "back-reference"),
    "a word's edge": (text("\\bab\\b"), "pattern"),
    "no pattern": (text("^(a$"), "pattern"),
    "a pattern inside": (closed(a=text("(?!a)b")), "properties.a.pattern"),
    "unique items": (listed(uniqueItems=True, items=DIGIT), "uniqueItems"),
    "contains": (listed(contains={"const": 1}), "contains"),
    "names": ({"type": "object", "propertyNames": {"pattern": "^a$"}}, "propertyNames"),
    "dependent": ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    "dependencies": ({"type": "object", "dependencies": {"a": ["b"]}}, "dependencies"),
    "if": ({"if": {"const": 1}, "then": {"const": 1}, "else": {"const": 2}}, "if"),
    "not": ({"not": {"const": 1}}, "not"),
    "one of several that overlap": ({"oneOf": [DIGIT, {"type": "number", "minimum": 3}]}, "oneOf"),
    "one of equals": ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "oneOf"),
    "unevaluated beside others": (
        {"allOf": [one_field("a", 1)], "unevaluatedProperties": False},
        "unevaluatedProperties",
    ),
    "draft 3": ({"disallow": "string"}, "disallow"),
    "names that are counted": ({"type": "object", "minProperties": 2}, "minProperties"),
    "no value": ({"enum": []}, "enum"),
    "no fitting value": ({"type": "string", "enum": [1]}, "enum"),
    "no fitting constant": ({"const": 3, "enum": [1, 2]}, "const"),
    "a large constant": ({"const": 1e50}, "const"),
    "no number": ({"type": "integer", "minimum": 1.2, "maximum": 1.8}, "minimum"),
    "a huge number": ({"type": "integer", "minimum": 10**30}, "minimum"),
    "multiples of a tenth": ({"type": "number", "multipleOf": 0.1}, "multipleOf"),
    "multiples of nothing": ({"type": "integer", "multipleOf": 0}, "multipleOf"),
    "a negative length": ({"type": "string", "minLength": -1}, "minLength"),
    "a broken length": ({"type": "string", "minLength": 2.5}, "minLength"),
    "lengths the wrong way around": ({"type": "string", "minLength": 3, "maxLength": 2}, "minLength"),
    "items the wrong way around": (listed(minItems=2, maxItems=1), "minItems"),
    "an unknown type": ({"type": "date"}, "type"),
    "no type": ({"type": []}, "type"),
    "nothing of any": ({"anyOf": []}, "anyOf"),
    "types that exclude each other": ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "types"),
    "an unknown format": ({"type": "string", "format": "color"}, "format"),
    "a name as required": ({"type": "object", "required": "a"}, "required"),
    "required and closed": (
        {"type": "object", "required": ["z"], "properties": {}, "additionalProperties": False},
        "required",
    ),
    "a list of properties": ({"type": "object", "properties": []}, "properties"),
    "patterns that meet": (
        {"type": "object", "patternProperties": {"a": DIGIT, "b": {"type": "string"}}},
        "patternProperty",
    ),
}

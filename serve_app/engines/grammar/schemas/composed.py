"""Which schemas of a document speak of one value together with another, so that neither knows all of its fields."""

from typing import Any

from serve_app.engines.grammar.schemas.document import Document, Node, Schema

_OF_OBJECTS = ("properties", "required", "patternProperties", "additionalProperties")
_OF_ITEMS = ("items", "prefixItems", "additionalItems")


def composed(nodes: list[Node], document: Document) -> set[int]:
    """Their identities. Some that stand alone can be among them, never the other way round."""
    counts_all = any(isinstance(node.schema.get(keyword), dict) for node in nodes for keyword in _OF_OBJECTS[2:])
    identities: set[int] = set()
    by_name: dict[str, list[Any]] = {}
    waiting: list[Any] = [node.schema for node in nodes if _num_speakers(node.schema) > 1]
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict) or id(schema) in identities:
            continue
        identities.add(id(schema))
        waiting += _in_place(schema, document)
        for name, child in _children(schema, is_each=counts_all):
            same = by_name.setdefault(name, [])
            same.append(child)
            if counts_all or len(same) > 1:  # the field's schemas of two that speak of one object
                waiting += same if len(same) <= 2 else same[-1:]
    return identities


def _num_speakers(schema: Schema) -> int:
    """How many schemas it holds a value to at once; one of several counts as one."""
    own = any(keyword in schema for keyword in (*_OF_OBJECTS, *_OF_ITEMS))
    return own + len(schema.get("allOf", [])) + sum(keyword in schema for keyword in ("$ref", "anyOf", "oneOf"))


def _in_place(schema: Schema, document: Document) -> list[Any]:
    branches = [branch for keyword in ("allOf", "anyOf", "oneOf") for branch in schema.get(keyword, [])]
    return [*branches, document.target(Node(schema, ""))] if "$ref" in schema else branches


def _children(schema: Schema, is_each: bool) -> list[tuple[str, Any]]:
    """What it says of its fields and items, by the field's name; of items, which have none, under an empty one."""
    children = list(schema.get("properties", {}).items())
    if is_each:
        children += [("", schema.get("additionalProperties")), *schema.get("patternProperties", {}).items()]
    for keyword in _OF_ITEMS:
        inside = schema.get(keyword, [])
        children += [("", child) for child in (inside if isinstance(inside, list) else [inside])]
    return children

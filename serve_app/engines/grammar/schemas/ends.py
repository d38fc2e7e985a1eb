"""Whether an answer to a JSON schema can end: references that lead nowhere, and fields without end."""

from collections.abc import Iterator
from typing import Any

from serve_app.engines.grammar.schemas.document import Document, Node, Schema
from serve_app.engines.grammar.schemas.values import types_of

_MAX_ROUNDS = 16  # each looks through the schemas from the other side


def check_ends(nodes: list[Node], document: Document) -> None:
    """Refuse references that lead back to themselves, and those by which no answer of finite length fits."""
    if not any("$ref" in node.schema for node in nodes):
        return
    _refuse_loops(nodes, document)
    ending: set[int] = set()
    others = nodes
    for _ in range(_MAX_ROUNDS):
        num_before, waiting = len(ending), []
        for node in reversed(others):
            if _can_end(node, document, ending):
                ending.add(id(node.schema))
            else:
                waiting.append(node)
        others = waiting
        if len(ending) == num_before:
            break
    if id(document.root) not in ending:
        raise ValueError("$ref: no answer of finite length fits it: require one field or item less")


def _refuse_loops(nodes: list[Node], document: Document) -> None:
    """A walk through what stands for the same value; whoever meets a schema that it is still inside of has a loop."""
    inside, done = set[int](), set[int]()
    for node in nodes:
        way = [(node.schema, _stand_ins(node.schema, document))]
        while way:
            schema, others = way[-1]
            inside.add(id(schema))
            other = next((stand_in for stand_in in others if id(stand_in) not in done), None)
            if other is None:
                way.pop()
                inside.discard(id(schema))
                done.add(id(schema))
            elif id(other) in inside:
                names = [outer["$ref"] for outer, _ in way if "$ref" in outer]
                raise ValueError(f"$ref: '{names[-1][:60]}' leads back to itself and says nothing")
            else:
                way.append((other, _stand_ins(other, document)))


def _stand_ins(schema: Schema, document: Document) -> Iterator[Schema]:
    branches = [branch for keyword in ("allOf", "anyOf", "oneOf") for branch in schema.get(keyword, [])]
    if "$ref" in schema:
        branches.append(document.target(Node(schema, "")))
    return (branch for branch in branches if isinstance(branch, dict))


def _can_end(node: Node, document: Document, ending: set[int]) -> bool:
    schema = node.schema

    def ends(child: Any) -> bool:
        return child is True or (isinstance(child, dict) and id(child) in ending)

    applied = [document.target(node)] if "$ref" in schema else []
    if not all(map(ends, [*applied, *schema.get("allOf", [])])):
        return False
    if any(keyword in schema and not any(map(ends, schema[keyword])) for keyword in ("anyOf", "oneOf")):
        return False
    types = types_of(schema)
    if "enum" in schema or types & {"string", "number", "integer", "boolean", "null"}:
        return True
    others = schema.get("additionalProperties", True)
    fields = [schema.get("properties", {}).get(name, others) for name in schema.get("required", [])]
    return ("object" in types and all(map(ends, fields))) or (
        "array" in types and all(map(ends, _least_items(schema)))
    )


def _least_items(schema: Schema) -> list[Any]:
    """The schemas that its shortest array has to fit, each at least once."""
    items, num_needed = schema.get("items", True), schema.get("minItems", 0)
    first = items if isinstance(items, list) else schema.get("prefixItems", [])
    rest = schema.get("additionalItems", True) if isinstance(items, list) else items
    return [*first[:num_needed], *([rest] if num_needed > len(first) else [])]

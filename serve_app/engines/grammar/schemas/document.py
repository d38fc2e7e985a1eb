"""A JSON schema as a document: its parts, by whichever way an answer can meet them, and what its references mean."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urljoin

Schema = dict[str, Any]

_MAPS = ("properties", "patternProperties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = ("items", "additionalItems", "additionalProperties")
_LONGEST_BASE = 256  # each part's `$id` is joined to it


@dataclass(frozen=True, slots=True)
class Node:
    """A part that is a schema itself; `place` is how errors say where it stands."""

    schema: Schema
    place: str

    def refusal(self, keyword: str, reason: str) -> ValueError:
        return ValueError(f"{self.place}{keyword}: {reason}")


@dataclass(slots=True)
class Document:
    """A schema with all that its references lead to. Nothing is fetched."""

    root: Schema
    _named: dict[str, Any] = field(default_factory=dict)
    _targets: dict[str, Any] = field(default_factory=dict)  # by pointers that were followed, which can be long

    def __post_init__(self) -> None:
        base = str(self.root.get("$id", ""))
        if len(base) > _LONGEST_BASE:
            raise ValueError(f"$id: it has over {_LONGEST_BASE} characters: leave it out")
        for part in _objects(self.root):
            name, anchor = part.get("$id"), part.get("$anchor")
            if isinstance(name, str):
                self._named |= {name: part, urljoin(base, name): part}
            if isinstance(anchor, str):
                self._named[f"#{anchor}"] = part

    def nodes(self) -> Iterator[Node]:
        """The schemas that an answer can meet, each once, outer ones before inner ones. Raises as `target`."""
        waiting, seen = [Node(self.root, "")], {id(self.root)}
        while waiting:
            node = waiting.pop()
            yield node
            children = list(_children(node))
            if "$ref" in node.schema:
                target = self.target(node)  # first: it looks whether there is a text
                children.append((f"{node.schema['$ref'][:60]}: ", target))
            for place, child in children:
                if isinstance(child, dict) and id(child) not in seen:
                    seen.add(id(child))
                    waiting.append(Node(child, place))

    def target(self, node: Node) -> Any:
        """What the node's `$ref` means: a schema. Raises `ValueError` where that isn't in this document."""
        reference = node.schema["$ref"]
        if not isinstance(reference, str):
            raise node.refusal("$ref", "it is a text, as '#/$defs/name'")
        if reference in self._named:
            return self._named[reference]
        if reference not in self._targets:
            self._targets[reference] = self._resolved(reference, node)
        return self._targets[reference]

    def _resolved(self, reference: str, node: Node) -> Any:
        document, _, pointer = reference.partition("#")
        part: Any = self._named.get(document) if document else self.root
        if pointer and not pointer.startswith("/"):
            part = None  # an anchor that nothing has
        for step in unquote(pointer).split("/")[1:]:
            part = _stepped(part, step.replace("~1", "/").replace("~0", "~"))
        if not isinstance(part, dict | bool):
            raise node.refusal("$ref", f"'{reference[:60]}' isn't in this schema, and none is fetched")
        return part


def _stepped(part: Any, name: str) -> Any:
    if isinstance(part, dict):
        return part.get(name)
    return part[int(name)] if isinstance(part, list) and name.isdecimal() and int(name) < len(part) else None


def _objects(value: Any) -> Iterator[Schema]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _children(node: Node) -> Iterator[tuple[str, Any]]:
    for keyword in _MAPS:
        inside = node.schema.get(keyword, {})
        if not isinstance(inside, dict):
            raise node.refusal(keyword, "it is an object whose values are schemas")
        yield from ((f"{node.place}{keyword}.{name[:40]}.", child) for name, child in inside.items())
    for keyword in _LISTS:
        inside = node.schema.get(keyword, [])
        if isinstance(inside, list):
            yield from ((f"{node.place}{keyword}[{number}].", child) for number, child in enumerate(inside))
        elif keyword != "items":
            raise node.refusal(keyword, "it is a list of schemas")
    for keyword in _SINGLE:
        if isinstance(node.schema.get(keyword), dict):
            yield f"{node.place}{keyword}.", node.schema[keyword]

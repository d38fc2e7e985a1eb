"""Whether at most one of several schemas can hold: what `oneOf` asks, as far as it can be told from them alone."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from serve_app.schemas.values import ALL_TYPES, canonical, type_of, types_of

Follow = Callable[[Any], Any]  # what a schema's `$ref` means

_MAX_BRANCHES = 128  # each is compared with each
_MAX_STEPS = 8  # references and compositions that are looked through


@dataclass(frozen=True, slots=True)
class _Shape:
    """What certainly holds for all that fits: its types, and its values where they are listed.

    `fields` are those that every object of it has; `names`, where it isn't None, all that it may have.
    """

    types: frozenset[str]
    values: frozenset[str] | None
    fields: dict[str, "_Shape"]
    names: frozenset[str] | None


_ANYTHING = _Shape(ALL_TYPES, None, {}, None)
_NOTHING = _Shape(frozenset(), frozenset(), {}, None)


def are_apart(branches: list[Any], follow: Follow) -> bool:
    """Whether no value fits two of them."""
    if len(branches) > _MAX_BRANCHES:
        return False
    shapes = [_shape(branch, follow, _MAX_STEPS) for branch in branches]
    return all(_exclude(one, other) for one, other in combinations(shapes, 2))


def _shape(schema: Any, follow: Follow, steps: int) -> _Shape:
    if schema is False:
        return _NOTHING
    if not isinstance(schema, dict) or not steps:
        return _ANYTHING
    shape = _own(schema, follow, steps)
    if "$ref" in schema:
        shape = _both(shape, _shape(follow(schema), follow, steps - 1))
    for branch in schema.get("allOf", []):
        shape = _both(shape, _shape(branch, follow, steps - 1))
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            shape = _both(shape, _either([_shape(branch, follow, steps - 1) for branch in schema[keyword]]))
    return shape


def _own(schema: dict[str, Any], follow: Follow, steps: int) -> _Shape:
    listed, needed = schema.get("properties", {}), schema.get("required", [])
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    is_closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
    return _Shape(
        types=types_of(schema) & (frozenset(map(type_of, values)) if values is not None else ALL_TYPES),
        values=None if values is None else frozenset(map(canonical, values)),
        fields={name: _shape(listed.get(name, True), follow, steps - 1) for name in needed},
        names=frozenset(listed) if is_closed else None,
    )


def _both(one: _Shape, other: _Shape) -> _Shape:
    return _Shape(
        types=one.types & other.types,
        values=_common(one.values, other.values),
        fields=one.fields | other.fields,
        names=_common(one.names, other.names),
    )


def _common(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    return other if one is None else one if other is None else one & other


def _either(shapes: list[_Shape]) -> _Shape:
    values = [shape.values for shape in shapes if shape.values is not None]
    return _Shape(
        types=frozenset[str]().union(*(shape.types for shape in shapes)),
        values=frozenset[str]().union(*values) if len(values) == len(shapes) else None,
        fields={},
        names=None,
    )


def _exclude(one: _Shape, other: _Shape) -> bool:
    common = one.types & other.types
    if not common or (one.values is not None and other.values is not None and not one.values & other.values):
        return True
    if common != {"object"}:
        return False
    if any(name in other.fields and _exclude(field, other.fields[name]) for name, field in one.fields.items()):
        return True
    return _has_what_is_closed_to(one, other) or _has_what_is_closed_to(other, one)


def _has_what_is_closed_to(one: _Shape, other: _Shape) -> bool:
    return other.names is not None and any(name not in other.names for name in one.fields)

"""Whether at most one of several schemas can hold: what `oneOf` asks, as far as it can be told from them alone."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from serve_app.engines.grammar.schemas.values import ALL_TYPES, canonical, type_of, types_of

Follow = Callable[[Any], Any]  # what a schema's `$ref` means

_MAX_BRANCHES = 128  # each is compared with each
_MAX_STEPS = 8  # references and compositions that are looked through
# For a whole document, whose references can lead to the same schemas in very many ways. A unit is less than 1 µs.
_MAX_WORK = 100_000
_SHAPE_WORK, _PAIR_WORK = 10, 2


@dataclass(frozen=True, slots=True)
class _Shape:
    """What certainly holds for all that fits: its types, and its values where they are listed.

    `fields` are those that every object of it has; `names`, where it isn't None, all that it may have.
    """

    types: frozenset[str]
    values: frozenset[str] | None
    fields: dict[str, "_Shape"]
    names: frozenset[str] | None

    @property
    def size(self) -> int:
        return len(self.values or ()) + len(self.fields) + len(self.names or ())


_ANYTHING = _Shape(ALL_TYPES, None, {}, None)
_NOTHING = _Shape(frozenset(), frozenset(), {}, None)


class Unions:
    """Tells of one document's schemas whether they exclude each other: not where that takes too much work."""

    def __init__(self, follow: Follow) -> None:
        self._follow = follow
        self._shapes: dict[tuple[int, int], _Shape] = {}  # by the schema's identity, and the steps that were left
        self._work_left = _MAX_WORK

    def are_apart(self, branches: list[Any]) -> bool:
        """Whether no value fits two of them."""
        if len(branches) > _MAX_BRANCHES:
            return False
        shapes = [self._shape(branch, _MAX_STEPS) for branch in branches]
        return all(self._exclude(shape, other) for shape, other in combinations(shapes, 2))

    def _spend(self, work: int) -> bool:
        """Whether there was so much left."""
        self._work_left -= work
        return self._work_left > 0

    def _shape(self, schema: Any, steps: int) -> _Shape:
        if schema is False:
            return _NOTHING
        if not isinstance(schema, dict) or not steps:
            return _ANYTHING
        key = (id(schema), steps)
        if key not in self._shapes:
            self._shapes[key] = self._composed(schema, steps) if self._spend(_SHAPE_WORK) else _ANYTHING
        return self._shapes[key]

    def _composed(self, schema: dict[str, Any], steps: int) -> _Shape:
        shape = self._own(schema, steps)
        if "$ref" in schema:
            shape = self._both(shape, self._shape(self._follow(schema), steps - 1))
        for branch in schema.get("allOf", []):
            shape = self._both(shape, self._shape(branch, steps - 1))
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                shape = self._both(
                    shape, self._either([self._shape(branch, steps - 1) for branch in schema[keyword]])
                )
        return shape

    def _own(self, schema: dict[str, Any], steps: int) -> _Shape:
        listed, needed = schema.get("properties", {}), schema.get("required", [])
        values = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if not self._spend(len(listed) + len(needed) + len(values or ())):
            return _ANYTHING
        is_closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
        return _Shape(
            types=types_of(schema) & (frozenset(map(type_of, values)) if values is not None else ALL_TYPES),
            values=None if values is None else frozenset(map(canonical, values)),
            fields={name: self._shape(listed.get(name, True), steps - 1) for name in needed},
            names=frozenset(listed) if is_closed else None,
        )

    def _both(self, shape: _Shape, other: _Shape) -> _Shape:
        if other is _ANYTHING or not self._spend(shape.size + other.size):
            return shape
        return _Shape(
            types=shape.types & other.types,
            values=_common(shape.values, other.values),
            fields=shape.fields | other.fields,
            names=_common(shape.names, other.names),
        )

    def _either(self, shapes: list[_Shape]) -> _Shape:
        if not self._spend(len(shapes) + sum(len(shape.values or ()) for shape in shapes)):
            return _ANYTHING
        values = [shape.values for shape in shapes if shape.values is not None]
        return _Shape(
            types=frozenset[str]().union(*(shape.types for shape in shapes)),
            values=frozenset[str]().union(*values) if len(values) == len(shapes) else None,
            fields={},
            names=None,
        )

    def _exclude(self, shape: _Shape, other: _Shape) -> bool:
        common = shape.types & other.types
        if not self._spend(_PAIR_WORK):
            return False
        if not common or self._have_other_values(shape, other):
            return True
        if common != {"object"} or not self._spend(len(shape.fields) + len(other.fields)):
            return False
        shared = (name for name in shape.fields if name in other.fields)
        if any(self._exclude(shape.fields[name], other.fields[name]) for name in shared):
            return True
        return _has_what_is_closed_to(shape, other) or _has_what_is_closed_to(other, shape)

    def _have_other_values(self, shape: _Shape, other: _Shape) -> bool:
        if shape.values is None or other.values is None or not self._spend(min(len(shape.values), len(other.values))):
            return False
        return shape.values.isdisjoint(other.values)


def _common(shape: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    return other if shape is None else shape if other is None else shape & other


def _has_what_is_closed_to(shape: _Shape, other: _Shape) -> bool:
    return other.names is not None and any(name not in other.names for name in shape.fields)

"""Values, types and patterns of JSON schemas: what of them an answer can be held to. Knows nothing of structure."""

import json
from collections.abc import Iterator
from typing import Any

ALL_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})

# RFC 3339, without leap seconds, small letters and years before 1000, which readers differ about.
# https://www.rfc-editor.org/rfc/rfc3339#section-5.6
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_LEAP_YEAR = r"([1-9][0-9](0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)"
_DAY = r"(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8])"
TIME = f"^{_TIME}$"
DATE_TIME = f"^({_LEAP_YEAR}-02-29|[1-9][0-9]{{3}}-({_DAY}))T{_TIME}$"

_EXACT_BELOW = 2**53
_LARGEST_DENOMINATOR = 1024


def types_of(schema: dict[str, Any]) -> frozenset[str]:
    """The types that its own `type` allows: all where there is none."""
    type_names = schema.get("type", ALL_TYPES)
    names = frozenset([type_names] if isinstance(type_names, str) else type_names)
    return names | {"integer"} if "number" in names else names


def type_of(value: Any) -> str:
    """A JSON value's type; whole numbers are integers, however they are written."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if whole(value) is not None else "number"
    return {str: "string", type(None): "null", list: "array", dict: "object"}[type(value)]


def whole(value: Any) -> int | None:
    """A whole number as one, also where it is written 2.0."""
    if isinstance(value, int):  # however large: not all have a float
        return None if isinstance(value, bool) else value
    return int(value) if isinstance(value, float) and value.is_integer() else None


def canonical(value: Any) -> str:
    """Equal for values that are equal in JSON, as 1 and 1.0."""
    return json.dumps(_with_whole(value), sort_keys=True)


def _with_whole(value: Any) -> Any:
    number = whole(value) if isinstance(value, float) else None
    return value if number is None else number


def fitting(values: list[Any], also: list[Any], types: frozenset[str]) -> list[Any] | None:
    """Those that stand in both lists and are of such a type; None where one has a number that no float holds."""
    canonicals = {canonical(value) for value in also}
    kept = [_with_whole(value) for value in values if type_of(value) in types and canonical(value) in canonicals]
    numbers = (part for value in kept for part in _leaves(value) if isinstance(part, int | float))
    return None if any(abs(number) >= _EXACT_BELOW for number in numbers) else kept


def is_exact_fraction(value: float) -> bool:
    """Whether dividing by it tells a multiple: no float is 0.1, and 0.6 no multiple of the one next to it."""
    return 0 < value < _EXACT_BELOW and float(value * _LARGEST_DENOMINATOR).is_integer()


def _leaves(value: Any) -> Iterator[Any]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting.extend(value.values() if isinstance(value, dict) else value)
        else:
            yield value

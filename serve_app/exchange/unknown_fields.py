"""Fields that a body's types don't have: dropped, ignored and reported, or refused with the nearest name.

Most requests have none, so this runs only where a body has one at its top, or was refused.
"""

import difflib
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, get_args, get_origin
from urllib.parse import quote

from serve_app.errors import InvalidRequest
from serve_app.exchange.body import LONGEST_FIELD, Body, Tolerant, shortened
from serve_app.strict import nearest_hint

MAX_FIELDS = 256  # of one object: more than any dialect has, neutral ones among them
MAX_NAMES = 32  # different ignored names in a request: each is compared with every field of its object
_NEAR = 0.75  # of difflib's ratio: two letters of a name of four that changed places
_NEAR_WITH_WORDS = 0.9  # where words stand beside a known name, as in `reasoning_text`: a letter too many or so
_OTHERS = frozenset({"context"})  # what other services' answers have, and is near to a field of another meaning
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_LONGEST_HEADER = 1000
_Nested = tuple[int, type[Body]]  # how many lists an object is in, and its type


class IgnoredFields:
    """The names of one request's ignored fields, each once, in the order in which they came."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def add(self, name: str) -> None:
        self._names[name] = None

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    @property
    def header(self) -> str:
        """For an HTTP header: separated by commas, each in the characters of a URL."""
        header = ", ".join(quote(name, safe="") for name in self._names)
        if len(header) <= _LONGEST_HEADER:
            return header
        names, _, _ = header[:_LONGEST_HEADER].rpartition(", ")  # none where the first name is longer by itself
        return f"{names}, ..." if names else "..."


def has_only_fields_of(body: type[Body], values: dict[str, Any]) -> bool:
    return values.keys() <= _types_of_fields(body).keys()


def without_unknown(values: Any, body: type[Body], ignored: IgnoredFields) -> Any:
    """A copy of `values`, which are to become a `body`, without neutral and ignored fields.

    Adds the names of ignored fields to `ignored`. Raises `InvalidRequest` about the first field that is refused.
    """
    return _without_unknown(values, [(0, body)], ignored, "")


def _without_unknown(values: Any, types: Sequence[_Nested], ignored: IgnoredFields, path: str) -> Any:
    """A value of another shape than its type, such as a list for an object, stays: validation names it better."""
    if isinstance(values, list):
        types = [(depth - 1, body) for depth, body in types if depth]
        if not types:
            return values
        return [_without_unknown(value, types, ignored, f"{path}[{index}]") for index, value in enumerate(values)]
    body = _body_of(values, types) if isinstance(values, dict) else None
    if body is None:
        return values
    if len(values) > MAX_FIELDS and not issubclass(body, Tolerant):  # for that, `MAX_NAMES` is enough
        _refuse(path, f"an object has at most {MAX_FIELDS} fields, and this one has {len(values)}")
    types_of_fields = _types_of_fields(body)
    for name, value in values.items():
        if name not in types_of_fields:
            _drop(name, value, body, ignored, _below(path, name))
    return {
        name: _without_unknown(value, types_of_fields[name], ignored, _below(path, name))
        for name, value in values.items()
        if name in types_of_fields and (value is not None or name in body.model_fields)
    }


def _below(path: str, name: str) -> str:
    return f"{path}.{shortened(name)}" if path else shortened(name)


def _drop(name: str, value: Any, body: type[Body], ignored: IgnoredFields, field: str) -> None:
    """Refuse the field, or return where it may be left out."""
    if len(name) > LONGEST_FIELD:  # before it is compared with any field
        _refuse(field, "there is no field with such a long name")
    if value is None and name not in body.model_fields:  # `schema_`, say, is Python's name and not the client's
        return
    if name in body.neutral:
        if value not in body.neutral[name]:
            _refuse(field, f"{name} isn't supported here: leave it out")
    elif not issubclass(body, Tolerant):
        _refuse(field, f"unknown field '{name}'{nearest_hint(name, _types_of_fields(body))}")
    elif value not in ("", [], {}):
        if _plain(name) in _misplaced_in(body):
            _refuse(field, body.misplaced_hint)
        if name not in ignored:
            _ignore(name, body, ignored, field)


def _ignore(name: str, body: type[Body], ignored: IgnoredFields, field: str) -> None:
    if near := _misspelt(name, body):
        _refuse(field, f"unknown field '{name}'{nearest_hint(near, [near])}")
    if len(ignored) == MAX_NAMES:
        _refuse(field, f"it is one more than the {MAX_NAMES} unknown fields that are read over: leave it out")
    ignored.add(name)


def _refuse(field: str, sentence: str) -> None:
    raise InvalidRequest(f"{field}: {sentence}" if field else sentence, field or None)


def _body_of(values: dict[str, Any], types: Sequence[_Nested]) -> type[Body] | None:
    """The only one that may stand here, or the one of a union that has the `type` in these values."""
    bodies = [body for depth, body in types if not depth]
    if len(bodies) <= 1:
        return bodies[0] if bodies else None
    return next((body for body in bodies if _has_type_of(values, body)), None)


def _has_type_of(values: dict[str, Any], body: type[Body]) -> bool:
    field = body.model_fields.get("type")
    return field is None or values.get("type", field.default) in get_args(field.annotation)


@cache
def _types_of_fields(body: type[Body]) -> dict[str, list[_Nested]]:
    """Each field as clients spell it, and the types of objects that may stand in it."""
    return {field.alias or name: _bodies_in(field.annotation) for name, field in body.model_fields.items()}


def _bodies_in(annotation: Any, depth: int = 0) -> list[_Nested]:
    if isinstance(annotation, type) and issubclass(annotation, Body):
        return [(depth, annotation)]
    depth += get_origin(annotation) is list
    return [nested for argument in get_args(annotation) for nested in _bodies_in(argument, depth)]


@cache
def _misplaced_in(body: type[Tolerant]) -> frozenset[str]:
    """Without its own fields: another spelling of those is a typo."""
    return frozenset(map(_plain, body.misplaced)) - frozenset(map(_plain, _known_names(body)))


def _known_names(body: type[Body]) -> list[str]:
    return [*_types_of_fields(body), *body.neutral]


def _misspelt(name: str, body: type[Body]) -> str | None:
    """The field that was meant, capitals, underscores and hyphens aside.

    A known name with words of its own beside it is another name.
    """
    if name in _OTHERS:
        return None
    plain = {_plain(field): field for field in _known_names(body)}
    words = f"_{_WORD_START.sub('_', name).replace('-', '_').lower()}_"
    cutoff = _NEAR_WITH_WORDS if any(f"_{field}_" in words for field in plain.values()) else _NEAR
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=cutoff)
    return plain[near[0]] if near else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")

"""Objects in which a field that nobody here knows asks for nothing: it is read over, and the client is told its name.

Clients send messages back as another service gave them, with fields of that service's own. What looks like one of
ours misspelt is a mistake, though, and so is what belongs into another part: both are refused as everywhere.
"""

import difflib
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, ClassVar
from urllib.parse import quote

from pydantic import GetJsonSchemaHandler, ValidationInfo, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from serve_app.exchange.body import LONGEST_FIELD, Body, wrong
from serve_app.strict import nearest_hint

MAX_NAMES = 32  # different ones in a request: each is compared with every field that there is
_NEAR = 0.75  # of difflib's ratio: two letters of a name of four that changed places
_NEAR_WITH_WORDS = 0.9  # where words stand beside a known name, as in `reasoning_text`: a letter too many or so
_OTHERS = frozenset({"context"})  # what other services' answers have, and is near to a field of another meaning
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_LONGEST_HEADER = 1000


class IgnoredFields:
    """The names of what was read over in one request, each once, in the order in which they came."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}

    def add(self, name: str) -> None:
        if len(self._names) == MAX_NAMES and name not in self._names:
            raise wrong(name, f"it is one more than the {MAX_NAMES} unknown fields that are read over: leave it out")
        self._names[name] = None

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def __len__(self) -> int:
        return len(self._names)

    @property
    def header(self) -> str:
        """For an HTTP header: separated by commas, each in the characters of a URL."""
        names, length = [], 0
        for name in self._names:
            names.append(quote(name, safe=""))
            length += len(names[-1]) + 2
            if length > _LONGEST_HEADER:
                return ", ".join([*names[:-1], "..."])
        return ", ".join(names)


class Tolerant(Body):
    """Base of the objects that are read so. `misplaced` are fields of its neighbours, which would ask for something.

    They are told apart whatever their capitals, underscores and hyphens; `misplaced_hint` says where they belong.
    What was read over is added to the validation's context, where that is an `IgnoredFields`.
    """

    misplaced: ClassVar[frozenset[str]] = frozenset()
    misplaced_hint: ClassVar[str] = "a part of this type has none: send it in a part of its own"

    @model_validator(mode="before")  # runs before those of the base classes
    @classmethod
    def _read_over_unknown(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, dict) or values.keys() <= cls._known():
            return values
        ignored = info.context if isinstance(info.context, IgnoredFields) else IgnoredFields()
        for name in cls._unknown(values):
            if _plain(name) in _misplaced_in(cls):
                raise wrong(name, cls.misplaced_hint)
            if name not in ignored:
                _refuse_typo(name, cls._known())
                ignored.add(name)
        known = cls._known()
        return {name: value for name, value in values.items() if name in known or len(name) > LONGEST_FIELD}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        told = super().__get_pydantic_json_schema__(schema, handler)
        handler.resolve_ref_schema(told).pop("additionalProperties", None)
        return told

    @classmethod
    def _unknown(cls, values: dict[str, Any]) -> Iterator[str]:
        """Those that say anything. What is too long to be looked at is left for the base class to refuse."""
        known = cls._known()
        for name, value in values.items():
            if name not in known and len(name) <= LONGEST_FIELD and value not in (None, "", [], {}):
                yield name

    @classmethod
    def _known(cls) -> frozenset[str]:
        return _fields_of(cls)


@cache
def _fields_of(body: type[Body]) -> frozenset[str]:
    return frozenset({field.alias or name for name, field in body.model_fields.items()} | body.neutral.keys())


@cache
def _misplaced_in(body: type[Tolerant]) -> frozenset[str]:
    """Without its own fields: another spelling of those is a typo."""
    return frozenset(map(_plain, body.misplaced)) - frozenset(map(_plain, _fields_of(body)))


def _refuse_typo(name: str, known: frozenset[str]) -> None:
    """Capitals, underscores and hyphens aside. A known name with words of its own beside it is another name."""
    if name in _OTHERS:
        return
    plain = {_plain(field): field for field in known}
    words = f"_{_words(name)}_"
    cutoff = _NEAR_WITH_WORDS if any(f"_{field}_" in words for field in known) else _NEAR
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=cutoff)
    if near:
        hint = nearest_hint(plain[near[0]], [plain[near[0]]])
        raise wrong(name, f"unknown field '{name}'{hint}")


def _words(name: str) -> str:
    return _WORD_START.sub("_", name).replace("-", "_").lower()


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")

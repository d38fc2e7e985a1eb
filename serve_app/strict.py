"""Frozen values that refuse unknown keys by name, and their mistakes in one sentence: configs and bodies are such."""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError


class Strict(BaseModel):
    """Frozen values in which an unknown key is an error that names the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _name_nearest_key(cls, values: Any) -> Any:
        if isinstance(values, dict):
            valid = {field.alias or name for name, field in cls.model_fields.items()}
            for key in values.keys() - valid:
                hint = nearest_hint(str(key), valid)
                raise PydanticCustomError(
                    "unknown_field", "unknown field '{field}'{hint}", {"field": str(key), "hint": hint}
                )
        return values


def nearest_hint(name: str, valid: Any) -> str:
    """«: did you mean 'x'?» with the nearest of `valid`, or all of them where none is near."""
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    if near:
        return ": did you mean " + " or ".join(f"'{n}'" for n in near) + "?"
    return f": expected one of {', '.join(sorted(valid))}" if valid else ""


def first_sentence(error: ValidationError) -> str:
    """The first mistake, with the path of the value it is about."""
    first = error.errors(include_url=False, include_input=True)[0]
    path = ".".join(str(step) for step in first["loc"])
    sentence = first["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(first["input"], dict) else f" (it is {first['input']!r})"
    return f"{path}: {sentence}{shown}" if path else sentence

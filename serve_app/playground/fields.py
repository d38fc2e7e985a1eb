"""What visitors type, as a request's fields. What no field can be is `Refused`; the rest is the service's to say."""

from math import isfinite
from typing import Any

from serve_app.playground.service import Refused

Fields = dict[str, Any]  # of a request, None where nothing is said
Number = str | float | None  # as a field for text holds it, or a client sends it


def text_of(value: Any) -> str:
    """What a field holds, empty ones included, which browsers send as nothing."""
    if value is not None and not isinstance(value, str):
        raise Refused("a text is wanted where something else was sent")
    return (value or "").strip()


def sampling_of(**numbers: Number) -> Fields:
    """Each number by its name, None where the field was left empty."""
    return {name: _number(name, "" if value is None else str(value).strip()) for name, value in numbers.items()}


def _number(name: str, text: str) -> int | float | None:
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not isfinite(number):
        raise Refused(f"{name}: '{text[:50]}' is no number: correct it")
    return number


def without_empty(fields: Fields) -> Fields:
    return {name: value for name, value in fields.items() if value is not None}

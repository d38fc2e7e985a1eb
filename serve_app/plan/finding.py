"""What a plan finds: how bad it is, where in the file, what is wrong, and what to change."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]  # can't work · works otherwise than written · worth knowing


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `place` is the path of the setting in the file."""

    severity: Severity
    place: str
    what: str
    fix: str


def error(place: str, what: str, fix: str) -> Finding:
    return Finding("error", place, what, fix)


def warning(place: str, what: str, fix: str) -> Finding:
    return Finding("warning", place, what, fix)


def note(place: str, what: str, fix: str) -> Finding:
    return Finding("note", place, what, fix)

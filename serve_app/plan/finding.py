"""What a plan finds: how bad it is, where in the file, what is wrong, and what to change."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

Severity = Literal["error", "warning", "note"]  # can't work · works otherwise than written · worth knowing


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `place` is the path of the setting in the file."""

    severity: Severity
    place: str
    what: str
    fix: str


error, warning, note = partial(Finding, "error"), partial(Finding, "warning"), partial(Finding, "note")

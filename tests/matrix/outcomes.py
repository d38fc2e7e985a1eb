"""What the tests measured of each row. They keep to what is written down, or write it, under RECORD_OUTCOMES=1."""

import json
import os
from pathlib import Path

PATH = Path(__file__).parent / "outcomes.json"


def outcomes() -> dict[str, dict[str, str]]:
    """By row name: what was measured, in words."""
    measured: dict[str, dict[str, str]] = json.loads(PATH.read_text()) if PATH.exists() else {}
    return measured


def record(row_name: str, what: str, measured: str) -> None:
    """Assert that it is as written down."""
    known = outcomes()
    if os.environ.get("RECORD_OUTCOMES") == "1":
        known.setdefault(row_name, {})[what] = measured
        PATH.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    written = known.get(row_name, {}).get(what)
    assert written == measured, (
        f"{row_name}: {what} is '{measured}' and was '{written}': run the matrix with RECORD_OUTCOMES=1, then "
        "python -m tests.matrix.table"
    )

"""The Makefile's own promises, as far as they need no installation."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_wrong_python_is_named_with_the_fix(tmp_path: Path) -> None:
    """A python3 that says it is 3.9 in every other way runs the Makefile's own check."""
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\nexec python3 -c "import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])" "$2"\n')
    old.chmod(0o755)
    made = subprocess.run(
        ["make", f"{tmp_path}/venv/bin/python", f"PYTHON={old}", f"VENV={tmp_path}/venv"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode != 0
    assert "needs Python 3.11" in made.stderr
    assert "3.9" in made.stderr
    assert not (tmp_path / "venv").exists()

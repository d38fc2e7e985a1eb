"""Clients in an environment of their own, `build/clients`, whose versions may differ from the service's.

`make build/clients/.installed` makes it from requirements.txt, and `make test` does so by itself. The scripts beside
this file run there, as processes, and print one line of JSON.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
INSTALLED = FOLDER.parent.parent / "build" / "clients"
PYTHON = INSTALLED / "bin" / "python"

needs_clients = pytest.mark.skipif(
    not (INSTALLED / ".installed").exists(), reason="no clients here: run make build/clients/.installed"
)


def ask(script: str, *arguments: str, timeout_s: float = 200) -> dict[str, Any]:
    """What a script of this folder printed. The proxy that this machine may have is no business of loopback's."""
    environment = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
    done = subprocess.run(
        [str(PYTHON), "-W", "ignore", str(FOLDER / script), *arguments],
        capture_output=True, text=True, timeout=timeout_s, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers

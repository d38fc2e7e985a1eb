"""The README and the docs tell the truth: examples run and answer as shown, tables match the code."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.ingress.app import ROUTES
from serve_app.metrics.registry import metrics_table
from tests.service import RunningService

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```(sh|python)\n(.*?)```", README, re.DOTALL)


def test_the_readme_has_examples_of_both_kinds() -> None:
    assert {language for language, _ in EXAMPLES} == {"sh", "python"}
    assert len(EXAMPLES) >= 5


@pytest.mark.cluster
@pytest.mark.parametrize(("language", "example"), EXAMPLES, ids=[f"{n}-{e[0]}" for n, e in enumerate(EXAMPLES)])
def test_every_example_answers_as_shown(service: RunningService, tmp_path: Path, language: str, example: str) -> None:
    """A comment in an example shows its answer; «…» stands for anything."""
    code = example.replace("http://127.0.0.1:8000", service.url).replace("/tmp/", f"{tmp_path}/")
    code = code.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    program = ["bash", "-euc", code] if language == "sh" else [sys.executable, "-c", code]
    environment = {**os.environ, "SERVE_APP_URL": service.url}
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    for line in re.findall(r"^# (.*)$", example, re.MULTILINE):
        for part in filter(None, map(str.strip, line.split("…"))):
            assert part in said, (part, said)


def test_every_route_stands_in_the_api_page() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    for method, path, _ in ROUTES:
        assert f"`{method} {path.replace(':path', '')}`" in page


def test_the_metrics_table_is_the_codes_own() -> None:
    assert metrics_table().strip() in (ROOT / "docs" / "operations.md").read_text()


def test_every_path_the_readme_names_exists() -> None:
    for name in re.findall(r"`((?:serve_app|docs)/[\w/.]+)`", README) + re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / name).exists(), name


def test_make_help_names_every_command() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for command in ("up", "test", "test-models", "soak", "lint", "audit", "demo-model"):
        assert f"make {command}" in shown
    assert shlex.split(shown)[0] == "make"

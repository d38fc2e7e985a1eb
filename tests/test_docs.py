"""The README and the docs tell the truth: examples run and answer as shown, tables match the code."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.ingress.routes import ROUTES
from serve_app.metrics.specs import metrics_table
from tests.service import RunningService
from tests.test_imports import ROOMS

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/getting-started.md", "docs/captioning.md")}
EXAMPLES = [
    pytest.param(language, example, id=f"{page}-{number}-{language}")
    for page, text in PAGES.items()
    for number, (language, example) in enumerate(re.findall(r"```(sh|python)\n(.*?)```", text, re.DOTALL))
]


def test_the_pages_have_examples_of_both_kinds() -> None:
    assert {example.values[0] for example in EXAMPLES} == {"sh", "python"}
    assert len(EXAMPLES) >= 10


@pytest.mark.cluster
@pytest.mark.parametrize(("language", "example"), EXAMPLES)
def test_every_example_answers_as_shown(service: RunningService, tmp_path: Path, language: str, example: str) -> None:
    """A comment in an example shows its answer; «…» stands for anything."""
    code = example.replace("http://127.0.0.1:8000", service.url).replace("/tmp/", f"{tmp_path}/")
    code = code.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    program = ["bash", "-euc", code] if language == "sh" else [sys.executable, "-c", code]
    # The hub's client refuses every address while it is offline, this service's too.
    environment = {**os.environ, "SERVE_APP_URL": service.url, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    for line in re.findall(r"^# (.*)$", example, re.MULTILINE):
        for part in filter(None, map(str.strip, line.split("…"))):
            assert part in said, (part, said)


def test_every_route_stands_in_the_api_page() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    for route in ROUTES:
        assert f"`{route.method} {route.shown_path}`" in page


def test_the_metrics_table_is_the_codes_own() -> None:
    assert metrics_table().strip() in (ROOT / "docs" / "operations.md").read_text()


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("cluster/*.md")]))
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    """Files by their paths in the repository, links by the page's own folder, and the headings that links lead to."""
    text = page.read_text()
    if page.name != "CHANGELOG.md":
        for name in re.findall(r"`((?:serve_app|docs|tests|benchmarks|cluster|demo_model)/[\w/.-]+)`", text):
            assert (ROOT / name).exists(), name
    for name, anchor in re.findall(r"\]\(([\w/.-]*)(?:#([\w-]+))?\)", text):
        target = page.parent / name if name else page
        assert target.exists(), name
        assert not anchor or anchor in headings(target), f"{name}#{anchor}"


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_make_help_names_every_command() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for command in ("up", "test", "test-models", "soak", "lint", "audit", "demo-model"):
        assert f"make {command}" in shown
    assert shlex.split(shown)[0] == "make"


def test_the_architecture_page_lists_the_rooms_in_their_order() -> None:
    table = (
        (ROOT / "docs" / "architecture.md").read_text().partition("## The rooms")[2].partition("\nBelow all rooms")[0]
    )
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == ROOMS

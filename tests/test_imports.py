"""The order of the rooms: a file imports what stands in its own room or below; the lower floors bring no engine."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "serve_app"

# Top floor first; docs/architecture.md says what each room is for. What isn't a room is the ground, below them all.
ROOMS = [
    "app", "cli", "local", "deployments", "playground", "gallery", "haproxy", "ingress", "dialects",
    "plan", "kubernetes", "exchange", "replica", "metrics", "engines", "access", "models", "images", "routing",
    "checkpoints", "families", "placement", "config", "demo", "client",
]  # fmt: skip
GROUND = "ground"
FLOORS = {room: floor for floor, room in enumerate([*ROOMS, GROUND])}

PURE = [
    "access.admission",
    "access.budget",
    "access.cancel_board",
    "access.key_file",
    "access.keys",
    "access.rates",
    "access.running",
    "checkpoints.load_progress",
    "checkpoints.source",
    "cli",
    "config.applications",
    "config.file",
    "engines.vllm.ranks",
    "errors",
    "families",
    "images.gate",
    "ingress.app",
    "kubernetes.manifest",
    "messages",
    "metrics.registry",
    "placement.packing",
    "placement.shortage",
    "plan.nodes",
    "plan.verdict",
]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, without the package's own."""
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def room_of(module: str) -> str:
    first = module.partition(".")[0].replace("__main__", "cli")
    return first if first in FLOORS else GROUND


def imports(source: str, known: set[str]) -> Iterator[str]:
    """The modules of the package that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "serve_app":
            module = node.module.removeprefix("serve_app").removeprefix(".")
            for alias in node.names:
                submodule = f"{module}.{alias.name}".removeprefix(".")
                yield submodule if submodule in known else module
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("serve_app.") for a in node.names if a.name.startswith("serve_app."))


def looks_up(module: str, source: str, known: set[str]) -> list[str]:
    """A sentence for each import by which this module looks up."""
    room = room_of(module)
    return [
        f"{module} ({room}) imports {target} ({room_of(target)}), which stands above it: "
        "move one of them, or hand the thing in from above"
        for target in imports(source, known)
        if target and FLOORS[room_of(target)] < FLOORS[room]
    ]


def test_no_file_imports_from_above() -> None:
    known = modules()
    found = [line for name, path in known.items() for line in looks_up(name, path.read_text(), set(known))]
    assert not found, "\n".join(found)


def test_every_room_is_there_and_every_folder_is_a_room() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if any(path.glob("*.py"))} - {"__pycache__"}
    assert folders == set(ROOMS) - {"app"}


@pytest.mark.parametrize(
    "line",
    [
        "from serve_app.ingress.app import create_app",
        "from serve_app.ingress import app",
        "import serve_app.ingress.app",
    ],
)
def test_an_import_from_above_is_named(line: str) -> None:
    (sentence,) = looks_up("images.gate", f"def late() -> None:\n    {line}\n", set(modules()))
    assert sentence.startswith("images.gate (images) imports ingress.app (ingress), which stands above it")


def test_no_folder_is_crowded() -> None:
    """At most 12 files at the root, and 25 in a room."""
    counts = {folder: len(list(folder.glob("*.py"))) for folder in [PACKAGE, *PACKAGE.rglob("*/")]}
    crowded = {str(folder): count for folder, count in counts.items() if count > (12 if folder == PACKAGE else 25)}
    assert not crowded


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_import_without_ray_torch_and_vllm(module: str) -> None:
    code = (
        "import sys\n"
        "for name in ('ray', 'torch', 'vllm', 'transformers'): sys.modules[name] = None\n"
        f"import serve_app.{module}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""One word for each thing, names that say what a value is, few broad excepts: what a test can see of the style."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "serve_app"
FILES = {str(path.relative_to(PACKAGE)): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}

# Prompts in their authors' words, patterns of what models say, and the fields of other services that clients send.
FOREIGN_WORDS = {"families/", "demo/", "dialects/captions/quality.py", "dialects/openai/chat_body.py"}

VAGUE = {"asked", "found", "given", "held", "known", "one", "told", "wanted"}  # say nothing of the value


def names(source: str) -> Iterator[str]:
    """The names that a file gives to values, parameters and functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def test_an_image_is_never_a_picture() -> None:
    own = {name: text for name, text in FILES.items() if not name.startswith(tuple(FOREIGN_WORDS))}
    assert [name for name, text in own.items() if re.search("picture", text, re.IGNORECASE)] == []


def test_names_are_nouns_of_the_domain() -> None:
    vague = {f"{file}: {name}" for file, text in FILES.items() for name in names(text) if name.strip("_") in VAGUE}
    assert vague == set()


def test_broad_excepts_are_few_and_have_a_reason() -> None:
    """At most one for each thousand lines."""
    lines = [line for text in FILES.values() for line in text.splitlines()]
    broad = [line for line in lines if re.search(r"except (Base)?Exception\b", line)]
    assert all("#" in line for line in broad), broad
    assert len(broad) <= len(lines) / 1000

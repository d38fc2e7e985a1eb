"""Writes docs/clients.md's table from the marks of the tests: `python -m tests.clients.table`.

A test that proves what a client does is marked `@pytest.mark.client(name, feature)`; `on=` names the engine that it
takes, `refused=` says why it doesn't work, which the test sees.
"""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "clients.md"
START, END = "<!-- written by tests/clients/table.py -->", "<!-- end -->"

# What each is pinned by: a package and the file that names its version.
CLIENTS: dict[str, tuple[str, str] | None] = {
    "openai-python": ("openai", "constraints.txt"),
    "huggingface_hub": ("huggingface_hub", "constraints.txt"),
    "@huggingface/inference 4": ("@huggingface/inference", "tests/node/package.json"),
    "@huggingface/inference 2": ("inference-2", "tests/node/package.json"),
    "curl": None,
    "LangChain": ("langchain-openai", "tests/clients/requirements.txt"),
    "LlamaIndex": ("llama-index-llms-openai-like", "tests/clients/requirements.txt"),
    "gradio_client": ("gradio_client", "constraints.txt"),
}
FEATURES = (
    "chat",
    "chat, streamed",
    "usage of a stream",
    "system prompt and several turns",
    "an image in a chat",
    "several images",
    "parts in any order, detail",
    "several answers (n)",
    "stop",
    "seed",
    "log-probabilities",
    "output formats",
    "tools",
    "completions",
    "text generation",
    "text generation, streamed",
    "details of tokens",
    "an image in a prompt",
    "image-to-text",
    "questions about an image",
    "questions about a document",
    "captions",
    "models",
    "information and health",
    "raw responses",
    "the client's own stream helper",
    "asynchronous",
    "retries after 429 and 503",
    "errors in its own classes",
)


@dataclass(frozen=True, slots=True)
class Mark:
    """What one test proves of one client."""

    client: str
    feature: str
    on: str | None = None
    refused: str | None = None


def marks() -> list[Mark]:
    """Every mark of every test, read from the files, so that it doesn't matter which tests run."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [mark for file in files for mark in _marks_in(ast.parse(file.read_text()))]


def _marks_in(tree: ast.AST) -> Iterator[Mark]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.client":
                    yield _mark(decorator, _constants(tree))


def _constants(tree: ast.AST) -> dict[str, str]:
    """The module's names for texts: clients are named so, each once in its file."""
    found: dict[str, str] = {}
    for node in tree.body if isinstance(tree, ast.Module) else ():
        if isinstance(node, ast.Assign):
            (target,) = node.targets
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=True))
            for name, value in pairs:
                if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[name.id] = value.value
    return found


def _mark(call: ast.Call, constants: dict[str, str]) -> Mark:
    def text(node: ast.expr) -> str:
        return constants[node.id] if isinstance(node, ast.Name) else str(ast.literal_eval(node))

    return Mark(*map(text, call.args), **{str(one.arg): text(one.value) for one in call.keywords})


def table() -> str:
    """Both tables in Markdown: what works, and why the rest doesn't."""
    found = marks()
    clients = [name for name in CLIENTS if any(mark.client == name for mark in found)]
    lines = [
        _row("", *(_titled(name) for name in clients)),
        _row(*["---"] * (len(clients) + 1)),
        *(_row(feature, *(_cell(found, client, feature) for client in clients)) for feature in _told(found)),
        "",
        "| client | what doesn't work | why |",
        "|---|---|---|",
        *(_row(m.client, m.feature, str(m.refused)) for m in sorted(set(found), key=_order) if m.refused),
    ]
    return "\n".join(lines)


def _told(found: list[Mark]) -> list[str]:
    return [feature for feature in FEATURES if any(mark.feature == feature for mark in found)]


def _order(mark: Mark) -> tuple[int, int]:
    return list(CLIENTS).index(mark.client), FEATURES.index(mark.feature)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(found: list[Mark], client: str, feature: str) -> str:
    """`yes` or on which engine, `in part` where something of it is refused, `no`; nothing where no test says."""
    here = [mark for mark in found if (mark.client, mark.feature) == (client, feature)]
    engines = {mark.on for mark in here if not mark.refused}
    is_refused = any(mark.refused for mark in here)
    if None in engines:
        return "in part" if is_refused else "yes"
    return f"on {', '.join(sorted(filter(None, engines)))}" if engines else "no" if is_refused else ""


def _titled(client: str) -> str:
    pinned = CLIENTS[client]
    return client if pinned is None else f"{client.partition(' ')[0]} {_version(*pinned)}"


def _version(package: str, file: str) -> str:
    text = (ROOT / file).read_text()
    if file.endswith(".json"):
        version: str = json.loads(text)["dependencies"][package]
        return version.rpartition("@")[2]
    found = re.search(rf"^{re.escape(package)}==(\S+)", text, re.MULTILINE)
    assert found, f"{file} doesn't pin {package}"
    return found[1]


def page() -> str:
    """docs/clients.md with the tables as they must be."""
    text = PAGE.read_text()
    head, rest = text.split(START)
    return f"{head}{START}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page())

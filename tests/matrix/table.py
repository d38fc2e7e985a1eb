"""Writes docs/models.md's table from the rows and what the tests measured: `python -m tests.matrix.table`."""

from pathlib import Path

from tests.matrix.outcomes import outcomes
from tests.matrix.rows import ROWS, Row

PAGE = Path(__file__).parent.parent.parent / "docs" / "models.md"
START, END = "<!-- written by tests/matrix/table.py -->", "<!-- end -->"
_HEADER = (
    "| model | architecture | engines | tensor parallel | images | batches | int8 | evidence |",
    "|---|---|---|---|---|---|---|---|",
)


def table() -> str:
    """The whole table in Markdown."""
    measured = outcomes()
    return "\n".join([*_HEADER, *(_line(row, measured.get(row.name, {})) for row in ROWS)])


def page() -> str:
    """docs/models.md with the table as it must be."""
    text = PAGE.read_text()
    head, rest = text.split(START)
    return f"{head}{START}\n{table()}\n{END}{rest.split(END)[1]}"


def _line(row: Row, measured: dict[str, str]) -> str:
    vllm = {"no": "", "yes": "vLLM", "needs torchvision": "vLLM with torchvision"}[row.vllm]
    was_run = "" if measured.get("vllm") else " (not run)"
    limit = {None: "any number", 0: "none"}.get(row.image_limit, str(row.image_limit))
    ways = (("engine", "batches"), ("HTTP", "http"), ("vLLM's tokens", "vllm"))
    tested = [name for name, what in ways if measured.get(what)]
    cells = (
        row.model,
        f"{row.architecture}" if row.needs_code else f"`{row.architecture}`",
        f"transformers, {vllm}{was_run}" if vllm else "transformers",
        f"with vLLM{was_run}" if vllm else "no",
        limit,
        measured.get("batches", "not tested"),
        measured.get("int8", "not tested"),
        f"{row.note}: {', '.join(tested) or 'not tested'}" + (f"; {row.vllm_differs}" if row.vllm_differs else ""),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(page())

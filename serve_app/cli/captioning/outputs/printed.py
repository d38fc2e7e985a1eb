"""Captions on stdout as they come. Nothing is kept."""

import sys
from collections.abc import Callable
from typing import Literal

from serve_app.cli.captioning.outputs.output import State
from serve_app.cli.captioning.outputs.rows import JsonLines, Row
from serve_app.cli.errors import FAILED, USAGE, CliError
from serve_app.cli.terminal import is_stdout_closed, one_line, printable, stdout_failure

Form = Literal["caption", "lines", "rows"]


class Printed:
    """The caption alone, `file<TAB>caption` lines, or rows as JSON lines. Failures go to `say`, or are rows."""

    def __init__(self, form: Form, say: Callable[[str], None]) -> None:
        """Raises `CliError` where stdout is closed."""
        if is_stdout_closed():
            raise CliError("stdout is closed: captions would go nowhere. Name a file with --output", USAGE)
        self._form = form
        self._say = say

    def state(self, path: str) -> State:
        return "new"

    def write(self, row: Row, data: bytes | None = None) -> Row:
        if self._form == "rows":
            _print(JsonLines().encode(row))
        elif row.is_failed:
            self._say(f"{row.file}: {row.error_message}")
        else:
            caption = row.written
            if sys.stdout.isatty():
                caption = printable(caption)
            line = caption if self._form == "caption" else f"{one_line(row.file)}\t{one_line(caption)}"
            _print(line.encode("utf-8", "surrogateescape") + b"\n")
        return row

    def sync(self) -> None:
        """Does nothing, as nothing is kept."""

    def close(self) -> None:
        """Does nothing, as nothing is open."""


def _print(data: bytes) -> None:
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as exc:
        raise CliError(f"{stdout_failure(exc)}. --output FILE.jsonl keeps captions", FAILED) from exc

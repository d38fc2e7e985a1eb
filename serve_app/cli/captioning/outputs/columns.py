"""A row as columns of strings, numbers and lists, for Parquet and datasets."""

from typing import Any, Final

from serve_app.cli.captioning.outputs.rows import JsonLines, Row

TEXTS: Final = (
    "file", "caption", "model", "style", "prompt", "finish_reason", "error_code", "error_message", "row",
)  # fmt: skip
NUMBERS: Final = ("prompt_tokens", "completion_tokens")


def cells(row: Row) -> dict[str, Any]:
    """A value for each of `TEXTS` and `NUMBERS`, and the `tags`. `row` is all of it as a JSON line.

    A file's name of any bytes has question marks where it isn't UTF-8; in `row` it is whole.
    """
    usage = row.usage or {}
    values = {
        "file": row.file, "caption": row.caption, "model": row.model, "style": row.settings.style,
        "prompt": row.settings.prompt, "finish_reason": row.finish_reason, "error_code": row.error_code,
        "error_message": row.error_message, "row": JsonLines().encode(row).decode().rstrip(),
    }  # fmt: skip
    texts = {name: text and text.encode("utf-8", "replace").decode() for name, text in values.items()}
    return texts | {name: usage.get(name) for name in NUMBERS} | {"tags": row.more.get("tags")}

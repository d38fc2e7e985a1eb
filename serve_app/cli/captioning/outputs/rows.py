"""One image's result, and how it stands in a JSON line or a CSV record.

File names are any bytes: Python's surrogate escapes carry them, as \\udcXX in JSON and as the bytes
themselves in CSV, so that both give back the very name.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from serve_app.cli.errors import USAGE, CliError

MORE: Final = ("tags", "json", "regions", "captions", "guard")  # what an answer may hold beside its caption
_KEPT: Final = (*MORE, "original")
_OPTIONAL: Final = ("max_tokens", "text", "before", "shard", "end", "same_as")
HEAD_BYTES: Final = 65_536  # of a file, in which a header's line ends
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class CaptionSettings:
    """The options that decide whether an image's row counts for a run. One that the command left out is None.

    `detail` holds the others as one JSON object with sorted names; None where all of them were left out.
    """

    model: str | None = None
    style: str | None = None
    prompt: str | None = None
    detail: str | None = None

    @classmethod
    def of(cls, model: str | None, style: str | None, prompt: str | None, **others: Any) -> "CaptionSettings":
        """Options whose value is None were left out."""
        options = {name: value for name, value in others.items() if value is not None}
        return cls(model, style, prompt, json.dumps(options, sort_keys=True) if options else None)

    @property
    def fields(self) -> dict[str, Any]:
        """The request's fields. How a caption is finished and rewritten is our own matter."""
        options: dict[str, Any] = {"model": self.model, "style": self.style, "prompt": self.prompt}
        options |= json.loads(self.detail) if self.detail else {}
        for own in ("finish", "rewrite"):
            options.pop(own, None)
        options |= options.pop("fields", {})
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Row:
    """An image's caption, or why it has none.

    `file` is its path, relative to the row's file once it stands there. `model` is the one that answered, `usage` its
    token counts, `more` what of `MORE` the answer holds, and the `original` that a second model rewrote. `text` is
    the name of its text file, where it has one, and `before` what stood there to which this caption was added.
    `shard` is the tar that holds it, up to the byte `end`. `same_as` is the image whose caption it has.
    """

    file: str
    settings: CaptionSettings
    caption: str | None = None
    model: str | None = None
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error_code: str | None = None
    error_message: str | None = None
    max_tokens: int | None = None
    more: dict[str, Any] = field(default_factory=dict)
    text: str | None = None
    before: str | None = None
    shard: str | None = None
    end: int | None = None
    same_as: str | None = None

    @property
    def is_failed(self) -> bool:
        return self.error_code is not None

    @property
    def written(self) -> str:
        """What a text file holds: the caption, or each of several on a line of its own."""
        if "captions" in self.more:
            return "\n".join(" ".join(each["caption"].split()) for each in self.more["captions"])
        return self.caption or ""

    @property
    def is_cut(self) -> bool:
        """Whether the caption ended because it had too many tokens."""
        return self.finish_reason == "length"

    def as_failure(self, code: str, message: str) -> "Row":
        return Row(self.file, self.settings, error_code=code, error_message=message)


class JsonLines:
    """One JSON object a line. `records` yields each whole record's bytes, and its row or None.

    `file_key` is what an image's path is called: `file_name` in the `metadata.jsonl` of Hugging Face's imagefolder.
    """

    header = b""

    def __init__(self, file_key: str = "file") -> None:
        self._file_key = file_key

    def encode(self, row: Row) -> bytes:
        settings = {"style": row.settings.style, "prompt": row.settings.prompt, "asked_model": row.settings.model}
        settings |= {"detail": row.settings.detail} if row.settings.detail else {}
        value: dict[str, Any] = {self._file_key: row.file}
        if row.is_failed:
            value |= {"error": {"code": row.error_code, "message": row.error_message}} | settings
        else:
            value |= {"caption": row.caption, "model": row.model} | settings
            value |= {"finish_reason": row.finish_reason, "usage": row.usage}
            optional = {name: getattr(row, name) for name in _OPTIONAL}
            value |= {name: cell for name, cell in optional.items() if cell is not None} | row.more
        try:
            return json.dumps(value, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:
            return json.dumps(value).encode() + b"\n"

    def read_header(self, head: bytes, path: str) -> None:
        """Raises `CliError` where the file's beginning isn't one of ours."""
        start = f'{{"{self._file_key}": "'.encode()
        head = head.removeprefix(_BYTE_ORDER_MARK)[: len(start)]
        if not (head.startswith(start) or start.startswith(head)):
            raise _not_ours(path)

    def records(self, lines: Iterable[bytes]) -> Iterator[tuple[bytes, Row | None]]:
        for line in lines:
            if line.endswith(b"\n"):
                yield line, self._row(line)

    def _row(self, line: bytes) -> Row | None:
        try:
            value = json.loads(line.removeprefix(_BYTE_ORDER_MARK))
            settings = _settings(value["asked_model"], value["style"], value["prompt"], value.get("detail"))
            row = Row(value[self._file_key], settings)
            if not isinstance(row.file, str):
                return None
            if "error" in value:
                error = value["error"]
                return replace(row, error_code=error["code"], error_message=error["message"])
            return replace(
                row,
                caption=value["caption"],
                model=value["model"],
                usage=value["usage"],
                finish_reason=value["finish_reason"],
                more={name: value[name] for name in _KEPT if name in value},
                **{name: value.get(name) for name in _OPTIONAL},
            )
        except (ValueError, KeyError, TypeError):
            return None


class CsvRecords:
    """RFC 4180: commas, double quotes, CR LF; a caption's own newlines stay inside its quotes.

    The file's own header decides the order of columns, and may have further ones, which stay empty in new rows.
    """

    columns: Sequence[str] = (
        "file", "caption", "model", "style", "prompt", "asked_model", "finish_reason", "prompt_tokens",
        "completion_tokens", "error_code", "error_message", "detail", "max_tokens", "more",
    )  # fmt: skip
    header = ",".join(columns).encode() + b"\r\n"
    _needed = frozenset(columns[:-2])  # files from before the last two go on without them

    def encode(self, row: Row) -> bytes:
        usage, settings = row.usage or {}, row.settings
        more = row.more | ({"same_as": row.same_as} if row.same_as else {})
        values = {
            "file": row.file, "caption": row.caption, "model": row.model, "style": settings.style,
            "prompt": settings.prompt, "asked_model": settings.model, "finish_reason": row.finish_reason,
            "prompt_tokens": usage.get("prompt_tokens"), "completion_tokens": usage.get("completion_tokens"),
            "error_code": row.error_code, "error_message": row.error_message, "detail": settings.detail,
            "max_tokens": row.max_tokens,
            "more": json.dumps(more, ensure_ascii=False) if more else None,
        }  # fmt: skip
        text = io.StringIO()
        csv.writer(text).writerow([values.get(column) for column in self.columns])
        return text.getvalue().encode("utf-8", "surrogateescape")

    def read_header(self, head: bytes, path: str) -> None:
        """Take over the columns of the file, which may have been moved. Raises `CliError` where some are missing."""
        head = head.removeprefix(_BYTE_ORDER_MARK)
        if self.header.startswith(head):  # empty, or torn in its first line
            return
        columns = _csv_values(head.partition(b"\n")[0])
        if "file" not in columns or "caption" not in columns:
            raise _not_ours(path)
        if missing := sorted(self._needed - set(columns)):
            names = ", ".join(f"'{name}'" for name in missing)
            raise CliError(f"{path} has no column {names} any more: put it back, or choose another --output", USAGE)
        if len(set(columns)) < len(columns):
            raise CliError(f"{path} has two columns of one name: rename one, or choose another --output", USAGE)
        self.columns = columns

    def records(self, lines: Iterable[bytes]) -> Iterator[tuple[bytes, Row | None]]:
        record, is_quoted = [], False
        for line in lines:
            record.append(line)
            is_quoted ^= line.count(b'"') % 2 == 1
            if line.endswith(b"\n") and not is_quoted:
                joined = b"".join(record)
                yield joined, self._row(joined.removeprefix(_BYTE_ORDER_MARK))
                record = []

    def _row(self, record: bytes) -> Row | None:
        values = _csv_values(record)
        if len(values) != len(self.columns):
            return None
        cells = {name: value or None for name, value in zip(self.columns, values, strict=True)}
        if cells["file"] in (None, "file"):
            return None
        try:
            settings = _settings(cells["asked_model"], cells["style"], cells["prompt"], cells["detail"])
            max_tokens = int(cells.get("max_tokens") or 0) or None
            usage = {name: int(cells[name] or 0) for name in ("prompt_tokens", "completion_tokens")}
            more = json.loads(cells.get("more") or "{}")
        except (ValueError, TypeError):
            return None
        if not isinstance(more, dict):
            return None
        return Row(
            cells["file"],
            settings,
            caption=cells["caption"] or "",
            finish_reason=cells["finish_reason"],
            usage=usage,
            error_code=cells["error_code"],
            error_message=cells["error_message"],
            max_tokens=max_tokens,
            same_as=more.pop("same_as", None),
            more=more,
        )


def records_of(path: str) -> JsonLines | CsvRecords:
    """How rows stand in the file, by its name."""
    if path.lower().endswith(".csv"):
        return CsvRecords()
    return JsonLines("file_name" if os.path.basename(path) == "metadata.jsonl" else "file")


def _csv_values(record: bytes) -> list[str]:
    try:
        return next(csv.reader(io.StringIO(record.decode("utf-8", "surrogateescape"), newline="")))
    except (csv.Error, StopIteration):
        return []


def _settings(model: str | None, style: str | None, prompt: str | None, detail: str | None) -> CaptionSettings:
    """The settings that a row holds. Raises `ValueError` for a `detail` that isn't ours."""
    others = json.loads(detail) if detail else {}
    if not isinstance(others, dict):
        raise ValueError("no detail of ours")
    return CaptionSettings(model, style, prompt, json.dumps(others, sort_keys=True) if others else None)


def _not_ours(path: str) -> CliError:
    return CliError(f"{path} holds something else than captions: choose another --output, or --overwrite", USAGE)

"""One image's result, and how it stands in a JSON line or a CSV record.

File names are any bytes: Python's surrogate escapes carry them, as \\udcXX in JSON and as the bytes
themselves in CSV, so that both give back the very name.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any


@dataclass(frozen=True, slots=True)
class CaptionSettings:
    """The options that decide whether an image's row counts for a run. One that the command left out is None."""

    model: str | None = None
    style: str | None = None
    prompt: str | None = None
    length: str | None = None
    options: tuple[str, ...] = ()
    name: str | None = None

    @property
    def detail(self) -> str | None:
        """Length, options and name as one JSON text; None where all of them were left out."""
        values = {"length": self.length, "options": list(self.options) or None, "name": self.name}
        values = {name: value for name, value in values.items() if value is not None}
        return json.dumps(values) if values else None

    @classmethod
    def of_row(
        cls, model: str | None, style: str | None, prompt: str | None, detail: str | None
    ) -> "CaptionSettings":
        """The settings that a row holds. Raises `ValueError` for a `detail` that isn't ours."""
        values = json.loads(detail) if detail else {}
        if not isinstance(values, dict):
            raise ValueError("no detail of ours")
        return cls(model, style, prompt, values.get("length"), tuple(values.get("options") or ()), values.get("name"))


@dataclass(frozen=True, slots=True)
class Row:
    """An image's caption, or why it has none. `model` is the one that answered, `usage` its token counts."""

    file: str
    settings: CaptionSettings
    caption: str | None = None
    model: str | None = None
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error_code: str | None = None
    error_message: str | None = None

    @property
    def is_failed(self) -> bool:
        return self.error_code is not None


def file_id(file: str) -> bytes:
    """16 bytes that stand for a file, however its path is spelled from the current folder."""
    return blake2b(os.path.abspath(file).encode("utf-8", "surrogatepass"), digest_size=16).digest()


class JsonLines:
    """One JSON object a line. `records` yields each whole record's length in bytes, and its row or None."""

    header = b""
    start = b'{"file": "'

    def encode(self, row: Row) -> bytes:
        settings = {"style": row.settings.style, "prompt": row.settings.prompt, "asked_model": row.settings.model}
        settings |= {"detail": row.settings.detail} if row.settings.detail else {}
        value: dict[str, Any] = {"file": row.file}
        if row.is_failed:
            value |= {"error": {"code": row.error_code, "message": row.error_message}} | settings
        else:
            value |= {"caption": row.caption, "model": row.model} | settings
            value |= {"finish_reason": row.finish_reason, "usage": row.usage}
        try:
            return json.dumps(value, ensure_ascii=False).encode() + b"\n"
        except UnicodeEncodeError:
            return json.dumps(value).encode() + b"\n"

    def records(self, lines: Iterable[bytes]) -> Iterator[tuple[int, Row | None]]:
        for line in lines:
            if line.endswith(b"\n"):
                yield len(line), self._row(line)

    def _row(self, line: bytes) -> Row | None:
        try:
            value = json.loads(line)
            settings = CaptionSettings.of_row(
                value["asked_model"], value["style"], value["prompt"], value.get("detail")
            )
            row = Row(value["file"], settings)
            if not isinstance(row.file, str):
                return None
            if "error" in value:
                error = value["error"]
                return replace(row, error_code=error["code"], error_message=error["message"])
            return replace(row, caption=value["caption"], model=value["model"], usage=value["usage"])
        except (ValueError, KeyError, TypeError):
            return None


class CsvRecords:
    """RFC 4180: commas, double quotes, CR LF; a caption's own newlines stay inside its quotes."""

    columns = (
        "file", "caption", "model", "style", "prompt", "asked_model", "finish_reason",
        "prompt_tokens", "completion_tokens", "error_code", "error_message", "detail",
    )  # fmt: skip
    header = ",".join(columns).encode() + b"\r\n"
    start = header

    def encode(self, row: Row) -> bytes:
        usage, settings = row.usage or {}, row.settings
        values = (
            row.file, row.caption, row.model, settings.style, settings.prompt, settings.model, row.finish_reason,
            usage.get("prompt_tokens"), usage.get("completion_tokens"), row.error_code, row.error_message,
            settings.detail,
        )  # fmt: skip
        text = io.StringIO()
        csv.writer(text).writerow(values)
        return text.getvalue().encode("utf-8", "surrogateescape")

    def records(self, lines: Iterable[bytes]) -> Iterator[tuple[int, Row | None]]:
        record, is_quoted = [], False
        for line in lines:
            record.append(line)
            is_quoted ^= line.count(b'"') % 2 == 1
            if line.endswith(b"\n") and not is_quoted:
                joined = b"".join(record)
                yield len(joined), self._row(joined)
                record = []

    def _row(self, record: bytes) -> Row | None:
        try:
            values = next(csv.reader(io.StringIO(record.decode("utf-8", "surrogateescape"), newline="")))
        except (csv.Error, StopIteration):
            return None
        if len(values) != len(self.columns) or values[0].removeprefix("\ufeff") == "file":
            return None
        row = dict(zip(self.columns, values, strict=True))
        try:
            settings = CaptionSettings.of_row(
                *(row[name] or None for name in ("asked_model", "style", "prompt", "detail"))
            )
        except (ValueError, TypeError):
            return None
        error_code = row["error_code"] or None
        return Row(row["file"], settings, row["caption"], error_code=error_code, error_message=row["error_message"])

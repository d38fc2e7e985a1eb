"""Our log in a process of Ray Serve's: one line an event, in a rotating file of the process's own.

The file lies beside Ray Serve's own logs. A process's stderr, which Ray keeps too, is rotated only where
RAY_ROTATION_MAX_BYTES is set, and its name says neither model nor replica.
"""

import logging
import os
import re
import sys
import traceback
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

MAX_FILE_BYTES, NUM_OLD_FILES = 20_000_000, 4  # 100 MB a process, unless Ray's own variables say otherwise


def log_to_file(folder: Path, application: str, replica: str) -> None:
    """Give our logger its file, `serve_app_APPLICATION_REPLICA.log`; stderr where that can't be written. Idempotent.

    Not through Ray Serve's logger, which looks through the whole stack at every line, a tenth of the ingress's time
    per request.
    """
    logger = logging.getLogger("serve_app")
    if logger.handlers:
        return
    name = re.sub(r"[^A-Za-z0-9._-]", "-", application)
    handler = _handler(folder / f"serve_app_{name}_{replica}.log")
    handler.setFormatter(_Formatter(f"%(asctime)s %(levelname)s %(name)s replica={name}/{replica} %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _handler(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _File(
            path,
            maxBytes=_number("RAY_ROTATION_MAX_BYTES", MAX_FILE_BYTES),
            backupCount=_number("RAY_ROTATION_BACKUP_COUNT", NUM_OLD_FILES),
            encoding="utf-8",
            errors="backslashreplace",
        )
    except OSError as exc:
        handler = logging.StreamHandler(sys.__stderr__)
        print(f"no log at {path} ({exc}): it goes here instead", file=sys.__stderr__)
        return handler


def _number(variable: str, otherwise: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() and int(text) else otherwise


class _File(RotatingFileHandler):
    """Counts what it writes. Its base formats a line twice and asks for the file's size and kind, at each line."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, **options)
        self._num_bytes = path.stat().st_size

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + self.terminator
            self._num_bytes += len(line.encode("utf-8", "backslashreplace"))
            if self._num_bytes > self.maxBytes:
                self.doRollover()
                self._num_bytes = len(line)
            assert self.stream is not None, "opened at once, without `delay`"
            self.stream.write(line)
            self.stream.flush()
        except Exception:  # noqa: BLE001 -- as the library's handlers: a line that can't be written raises nothing
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk costs lines, and nothing else: a traceback for each would have no room either."""


class _Formatter(logging.Formatter):
    """Writes tracebacks without `print`, which Ray Serve, where it is optimised for throughput, replaces by one that
    makes a tuple of each line."""

    def formatException(self, ei: Any) -> str:
        return "".join(traceback.format_exception(*ei)).rstrip()

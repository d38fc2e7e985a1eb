"""Loaded by vLLM in each of its processes through the entry point `vllm.general_plugins`.

It ends the engine core when its replica dies: the core would otherwise keep the model's GPU memory, and the next
replica couldn't start. It writes down why a start failed, which vLLM doesn't tell the parent. It installs the backend
of `formats.py`.

Every program with vLLM in this environment loads an entry point. It acts only in processes that a replica of ours
spawned, which have `FAILURE_FILE` in their environment.
"""

import logging
import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

FAILURE_FILE = "SERVE_APP_VLLM_FAILURE"  # a path, set by a replica while it starts vLLM


def connect_to_parent() -> None:
    """Connect a process that a replica spawned to that replica; do nothing in others."""
    parent, path = multiprocessing.parent_process(), os.environ.get(FAILURE_FILE)
    if parent is None or path is None:
        return
    threading.Thread(target=_end_with, args=(parent,), name="parent-watch", daemon=True).start()
    logging.getLogger("vllm").addHandler(_FirstFailure(path))
    from serve_app.engines.vllm import formats  # imports vLLM, which processes without a replica need not do here

    formats.install()


def _end_with(parent: BaseProcess) -> None:
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


class _FirstFailure(logging.Handler):
    """Writes the first exception that vLLM logs in any of its processes; later ones follow from it."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            exc = record.exc_info[1]
            error = getattr(exc, "cause", None) or exc  # Ray wraps a rank's error in one of its own
            with suppress(OSError), open(self._path, "x", encoding="utf-8") as file:
                file.write(str(error) or type(error).__name__)

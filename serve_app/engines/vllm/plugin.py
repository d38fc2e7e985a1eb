"""Loaded by vLLM in each of its processes, by way of the entry point `vllm.general_plugins`.

It closes two gaps between a replica and the engine core that vLLM spawns. The core doesn't notice its parent's
death: where a replica is killed, it would live on with all of the model's GPU memory, and the next replica could not
start. And where the core fails to start, its parent only learns that it did, not why. In the core it also changes who
holds answers to formats (`vllm_formats.py`).

An entry point is loaded by every program with vLLM in this environment. It acts in those processes alone that a
replica of ours started, which find `FAILURE_FILE` in their environment.
"""

import importlib
import logging
import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

FAILURE_FILE = "SERVE_APP_VLLM_FAILURE"  # set by a replica while it starts vLLM: where to write why that failed


def connect_to_parent() -> None:
    """In a process that a replica spawned: end with it, and tell it why a start fails."""
    parent, path = multiprocessing.parent_process(), os.environ.get(FAILURE_FILE)
    if parent is None or path is None:
        return
    threading.Thread(target=_end_with, args=(parent,), name="parent-watch", daemon=True).start()
    logging.getLogger("vllm").addHandler(_FirstFailure(path))
    vllm_formats = importlib.import_module("serve_app.engines.vllm.formats")  # not where vLLM only looks who is there
    vllm_formats.install()


def _end_with(parent: BaseProcess) -> None:
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


class _FirstFailure(logging.Handler):
    """Writes the first exception that vLLM logs in any of its processes: the others follow from it."""

    def __init__(self, path: str) -> None:
        super().__init__(logging.ERROR)
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            raised = record.exc_info[1]
            error = getattr(raised, "cause", None) or raised  # a rank's error comes in one of Ray's
            with suppress(OSError), open(self._path, "x", encoding="utf-8") as file:
                file.write(str(error) or type(error).__name__)

"""Our log in a process of Ray Serve's: one line an event, to the file that Ray keeps of the process's stderr."""

import logging
import sys
import traceback
from typing import Any

_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def log_to_stderr() -> None:
    """Give our logger a handler: Ray Serve sets up only its own. Idempotent.

    To the process's own stderr: Ray Serve's stand-in for it looks through the whole stack at every line, a tenth of
    the ingress's time per request.
    """
    logger = logging.getLogger("serve_app")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.__stderr__)
        handler.setFormatter(_Formatter(_FORMAT))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


class _Formatter(logging.Formatter):
    """Writes tracebacks without `print`, which Ray Serve, where it is optimised for throughput, replaces by one that
    makes a tuple of each line."""

    def formatException(self, ei: Any) -> str:
        return "".join(traceback.format_exception(*ei)).rstrip()

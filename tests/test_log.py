"""Our log's lines, as they look in a process of Ray Serve's."""

import builtins
import logging
import sys

import pytest
from ray.serve._private.logging_utils import redirected_print

from serve_app.log import log_to_stderr


def test_a_traceback_is_readable_where_ray_serve_replaced_print(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("serve_app")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)  # the one that is captured
    monkeypatch.setattr(builtins, "print", redirected_print)  # as with RAY_SERVE_LOG_TO_STDERR=0
    log_to_stderr()
    try:
        raise ValueError("the cause")
    except ValueError:
        logger.exception("it failed")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("ERROR serve_app it failed")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: the cause"

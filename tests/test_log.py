"""Our log's lines and file, as they are in a process of Ray Serve's."""

import asyncio
import builtins
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from ray.serve._private.logging_utils import redirected_print

from serve_app.engines.choice import create_engine
from serve_app.errors import EngineFailed
from serve_app.log import NUM_OLD_FILES, log_to_file
from serve_app.messages import GenerationRequest, Message, Sampling, Text
from serve_app.metrics.registry import Metrics
from serve_app.replica.replica import Replica
from tests.own_lane import MODEL, SCRIPTED

MAX_BYTES = 10_000


@pytest.fixture
def logger(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """Ours, as it is before a process has set it up."""
    logger = logging.getLogger("serve_app")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logging.INFO)
    yield logger
    for handler in logger.handlers:
        handler.close()


def test_a_traceback_is_readable_where_ray_serve_replaced_print(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(builtins, "print", redirected_print)  # as with RAY_SERVE_LOG_TO_STDERR=0
    log_to_file(tmp_path / "serve", "a model/with a slash", "x1")
    try:
        raise ValueError("the cause")
    except ValueError:
        logger.exception("it failed")
    lines = (tmp_path / "serve" / "serve_app_a-model-with-a-slash_x1.log").read_text().splitlines()
    assert lines[0].endswith("ERROR serve_app replica=a-model-with-a-slash/x1 it failed")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: the cause"


def test_the_file_is_rotated_and_bounded(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_ROTATION_MAX_BYTES", str(MAX_BYTES))
    for _ in range(2):  # a second call changes nothing
        log_to_file(tmp_path, "demo", "x1")
    for number in range(2000):
        logger.info("request number=%d \ud800 %s", number, "x" * 50)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [
        "serve_app_demo_x1.log", *(f"serve_app_demo_x1.log.{number}" for number in range(1, NUM_OLD_FILES + 1))
    ]  # fmt: skip
    assert sum(file.stat().st_size for file in files) <= (1 + NUM_OLD_FILES) * MAX_BYTES
    assert "number=1999 " in files[0].read_text()


def test_without_a_place_for_the_file_it_goes_to_stderr(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)  # the one that is captured
    (tmp_path / "file").write_text("in the way")
    log_to_file(tmp_path / "file", "demo", "x1")
    logger.info("here I am")
    told = capsys.readouterr().err.splitlines()
    assert "no log at" in told[0]
    assert told[1].endswith("replica=demo/x1 here I am")


@pytest.mark.parametrize(
    ("text", "outcome", "num_tokens"),
    [
        ("!echo very secret words", "ok", 3),
        ("!fail-after 2", "engine_failed", 2),
        ("!hang secret", "client_left", 1),
    ],
)
async def test_a_replica_has_one_line_for_a_request_and_no_word_of_it(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture, text: str, outcome: str, num_tokens: int
) -> None:
    replica = Replica(MODEL, SCRIPTED, create_engine(SCRIPTED), Metrics(CollectorRegistry(), [MODEL]))
    await replica.start()
    message = Message("user", (Text(text),))
    asked = replica.answer(GenerationRequest("id-7", MODEL, (message,), Sampling(max_tokens=9), 30.0))
    try:
        async with asyncio.timeout(0.3):
            await asked
    except (TimeoutError, EngineFailed):
        pass
    await replica.stop()
    [line] = [record.getMessage() for record in caplog.records if "id-7" in record.getMessage()]
    assert re.fullmatch(
        rf"generation id=id-7 model={MODEL} outcome={outcome} seconds=\d+\.\d+ tokens={num_tokens}", line
    )
    assert "secret" not in caplog.text

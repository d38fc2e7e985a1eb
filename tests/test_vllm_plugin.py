"""What vLLM's own processes tell the replica of a start that failed."""

import logging
from pathlib import Path

from ray.exceptions import RayTaskError

from serve_app.engines import vllm_plugin


def log(logger: logging.Logger, error: Exception) -> None:
    try:
        raise error
    except Exception:  # whatever it is: what matters is that it was raised
        logger.exception("EngineCore failed to start.")


def test_the_first_failure_is_told_and_a_ranks_by_its_cause(tmp_path: Path) -> None:
    told = tmp_path / "failure.txt"
    logger = logging.Logger("apart from vLLM's own")
    logger.addHandler(vllm_plugin._FirstFailure(str(told)))
    logger.error("without an exception")
    assert not told.exists()
    cause = ValueError("Free memory on device is less than desired")
    rank = RayTaskError("initialize_worker", "Traceback: /some/file.py", cause, "ray::rank", 1, "127.0.0.1")
    log(logger, rank.as_instanceof_cause())
    log(logger, RuntimeError("Engine core initialization failed."))
    assert told.read_text() == str(cause)

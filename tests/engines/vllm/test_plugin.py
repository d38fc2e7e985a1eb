"""What vLLM's own processes tell the replica of a start that failed."""

import logging
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from ray.exceptions import RayTaskError

from serve_app.engines.vllm import plugin as vllm_plugin

pytestmark = pytest.mark.engine


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


PROGRAM = """
import multiprocessing, time
from importlib.metadata import entry_points

def child():
    (plugin,) = entry_points(group="vllm.general_plugins", name="serve_app")
    plugin.load()()
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(600)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
"""


@pytest.mark.parametrize("is_ours", [True, False])
def test_only_what_a_replica_started_ends_with_its_parent(tmp_path: Path, is_ours: bool) -> None:
    """Any other program that loads vLLM's plugins in this environment lives by its own rules."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environ = {name: value for name, value in os.environ.items() if name != vllm_plugin.FAILURE_FILE}
    if is_ours:
        environ[vllm_plugin.FAILURE_FILE] = str(tmp_path / "failure.txt")
    command = [sys.executable, str(tmp_path / "program.py")]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
        try:
            if is_ours:
                child.wait(60)
            else:
                with pytest.raises(psutil.TimeoutExpired):
                    child.wait(2)
        finally:
            with suppress(psutil.NoSuchProcess):
                child.kill()

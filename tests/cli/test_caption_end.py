"""What ends a run of `serve-app caption`: Ctrl-C, another run's lock, a service that goes away or only fails."""

import signal
import subprocess
import time
from pathlib import Path

import pytest
from starlette.responses import Response

from tests.cli_fake import (
    EXPECTED,
    NUM_IMAGES,
    FakeApi,
    captions,
    command,
    failure,
    free_port,
    run,
    serving,
    start,
    wait_for,
)

pytestmark = pytest.mark.engine


def test_ctrl_c_writes_what_came_and_says_how_to_continue(api: FakeApi, url: str, folder: Path) -> None:
    api.delay_s = 0.3
    process = start("caption", "in", "-o", "o.jsonl", "--concurrency", "4", url=url, cwd=folder)
    wait_for(lambda: api.seen.total() >= 6)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=15)
    assert process.returncode == 130
    assert b"run the same command again to continue" in errors
    assert sum(captions(folder, "o.jsonl").values()) == api.seen.total()


def test_a_second_ctrl_c_ends_at_once(api: FakeApi, url: str, folder: Path) -> None:
    api.delay_s = 30
    process = start("caption", "in", "-o", "o.jsonl", url=url, cwd=folder)
    wait_for(lambda: api.seen.total() >= 8)
    process.send_signal(signal.SIGINT)
    assert process.stderr
    assert b"again stops now" in process.stderr.readline()
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=15)
    assert process.returncode == 130
    assert time.monotonic() - begun < 9  # the first one alone would give the answers ten seconds


def test_an_output_has_one_writer(api: FakeApi, url: str, folder: Path) -> None:
    api.delay_s = 30
    for output in ("o.jsonl", "txt"):
        api.seen.clear()
        process = start("caption", "in", "-o", output, url=url, cwd=folder)
        wait_for(lambda: api.seen.total() > 0)
        other = run("caption", "in", "-o", output, url=url, cwd=folder)
        assert other.returncode == 2
        assert b"another run is writing to" in other.stderr
        process.kill()
        process.communicate()


def test_a_full_disk_ends_the_run_between_two_rows(url: str, folder: Path) -> None:
    words, environment = command("caption", "in", "-o", "o.jsonl", url=url)
    limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "-", *words]  # at most 8 KiB a file
    done = subprocess.run(limited, env=environment, cwd=folder, capture_output=True, timeout=60, check=False)
    assert done.returncode == 1
    assert b"o.jsonl can't be written" in done.stderr
    assert 0 < sum(captions(folder, "o.jsonl").values()) < NUM_IMAGES
    assert run("caption", "in", "-o", "o.jsonl", url=url, cwd=folder).returncode == 0
    assert captions(folder, "o.jsonl") == EXPECTED


def test_a_service_that_restarts_costs_no_image(folder: Path) -> None:
    api, port = FakeApi(), free_port()
    api.delay_s = 0.05
    with serving(api, port) as url:
        process = start("caption", "in", "-o", "o.jsonl", "--concurrency", "4", url=url, cwd=folder)
        wait_for(lambda: api.seen.total() >= 10)
    time.sleep(1)
    with serving(api, port):
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    assert captions(folder, "o.jsonl") == EXPECTED


def test_a_service_that_stays_away_ends_the_run(folder: Path) -> None:
    api = FakeApi()
    api.delay_s = 0.1
    with serving(api) as url:
        process = start(
            "caption", "in", "-o", "o.csv", "--patience", "1.5", "--concurrency", "4", url=url, cwd=folder
        )
        wait_for(lambda: api.seen.total() >= 10)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 3
    assert b"the same command continues when it runs again" in errors
    assert 0 < sum(captions(folder, "o.csv").values()) < NUM_IMAGES


def test_a_service_that_only_fails_ends_the_run(api: FakeApi, url: str, folder: Path) -> None:
    def broken(content: str, num_times: int) -> Response:
        return failure(500, "engine_failed", "no memory")

    api.fault = broken
    done = run("caption", "in", "-o", "o.jsonl", "--concurrency", "20", url=url, cwd=folder)
    assert done.returncode == 3
    assert b"images in a row: no memory" in done.stderr

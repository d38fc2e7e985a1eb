"""The command line against the whole service: real images, a real model, a run killed and continued."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.drawings import COLORS, SHAPES, draw, encode, png, says
from tests.service import RunningService

pytestmark = pytest.mark.cluster


def command(service: RunningService, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "serve_app", *arguments],
        input=stdin, capture_output=True, text=True, timeout=120, env=environment(service),
    )  # fmt: skip


def environment(service: RunningService) -> dict[str, str]:
    return {**os.environ, "SERVE_APP_URL": service.url}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Every colour and shape as JPEG and PNG, some in odd places, and what is no image among them."""
    (tmp_path / "deeper").mkdir()
    for number, color in enumerate(sorted(COLORS)):
        for shape in SHAPES:
            where = tmp_path / ("deeper" if number % 2 else ".")
            (where / f"{color}-{shape}.png").write_bytes(png(color, shape))
    (tmp_path / "red-circle.JPG").write_bytes(encode(draw("red", "circle"), "JPEG"))
    (tmp_path / "broken.png").write_bytes(b"not an image at all")
    (tmp_path / "notes.txt").write_text("not for captioning")
    return tmp_path


def check_rows(output: Path) -> None:
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    by_name = {Path(row["file"]).name: row for row in rows}
    assert len(rows) == len(by_name) == len(COLORS) * len(SHAPES) + 2
    assert by_name.pop("broken.png")["error"]["code"] == "invalid_image"
    for name, row in by_name.items():
        color, shape = Path(name).stem.split("-")
        assert says(row["caption"], color, shape), row


def test_a_folder(service: RunningService, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "captions.jsonl"
    done = command(service, "caption", str(folder), "--output", str(output))
    assert done.returncode == 1, done.stderr  # one image is broken
    check_rows(output)
    again = command(service, "caption", str(folder), "--output", str(output))
    assert "done before" in again.stdout + again.stderr
    check_rows(output)


def test_a_run_that_is_killed_goes_on(service: RunningService, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "captions.jsonl"
    arguments = ["caption", str(folder), "--output", str(output)]
    run = subprocess.Popen(
        [sys.executable, "-m", "serve_app", *arguments, "--concurrency", "1"],
        env=environment(service), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not output.exists() or output.read_text().count("\n") < 2):
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert command(service, *arguments).returncode == 1
    check_rows(output)


def test_one_image_is_printed(service: RunningService, folder: Path) -> None:
    done = command(service, "caption", str(folder / "red-circle.JPG"))
    assert done.returncode == 0
    assert says(done.stdout, "red", "circle")


def test_chat_with_an_image(service: RunningService, folder: Path) -> None:
    done = command(service, "chat", "--image", str(folder / "red-circle.JPG"), "What color is the circle?")
    assert done.returncode == 0, done.stderr
    assert "red" in done.stdout.lower()


def test_models_and_status(service: RunningService) -> None:
    models = command(service, "models")
    assert models.returncode == 0
    assert "demo" in models.stdout
    assert "ready" in models.stdout
    status = command(service, "status", "--json")
    assert status.returncode == 0, status.stderr
    assert "demo" in status.stdout


def test_a_plan_for_a_cluster_that_wants_another_token_says_so(service: RunningService, tmp_path: Path) -> None:
    log = (service.temp_dir / "up.log").read_text()
    address = re.search(r"Ray is up at (\S+)", log)
    assert address is not None, log
    done = subprocess.run(
        [sys.executable, "-m", "serve_app", "plan", "serve_config.yaml", "--address", address[1]],
        capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent.parent.parent,
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"the Ray cluster at '{address[1]}' refuses this token: bring its ~/.ray/auth_token here" in done.stderr

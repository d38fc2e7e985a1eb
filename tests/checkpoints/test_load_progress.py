"""What a start says of itself: often to the sidecar, seldom in the log."""

import logging

import pytest

from serve_app.checkpoints.load_progress import DownloadProgress, LoadProgress, amount


def test_a_new_kind_of_step_is_logged_at_once_and_the_same_kind_seldom(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    progress = LoadProgress("m", clock=lambda: now)
    with caplog.at_level(logging.INFO, "serve_app.checkpoints.load_progress"):
        for second in range(12):
            now = float(second)
            progress(f"downloading {second} of 12 GB")
            assert progress.step == f"downloading {second} of 12 GB"
        progress("loading weights")
        progress.end()
    assert [record.getMessage() for record in caplog.records] == [
        "model=m: downloading 0 of 12 GB",
        "model=m: downloading 5 of 12 GB",
        "model=m: downloading 10 of 12 GB",
        "model=m: loading weights",
    ]
    assert progress.step is None


def test_bytes_add_up() -> None:
    steps: list[str] = []
    progress = DownloadProgress(steps.append, 4_900_000_000)
    progress.add(200_000_000)
    progress.add(1_000_000_000)
    assert steps == ["downloading 0.2 of 4.9 GB", "downloading 1.2 of 4.9 GB"]


@pytest.mark.parametrize(
    ("num_bytes", "num_total", "text"),
    [
        (0, 10, "0.0 of 0.0 kB"),
        (500, 1_500, "0.5 of 1.5 kB"),
        (7, 2_000_000, "0.0 of 2.0 MB"),
        (3_100_000_000, None, "3.1 GB"),
    ],
)
def test_amounts(num_bytes: int, num_total: int | None, text: str) -> None:
    assert amount(num_bytes, num_total) == text

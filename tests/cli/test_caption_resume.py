"""Runs that end early, and the same command again: nothing lost, nothing twice, whatever ended them."""

import json
import signal
from functools import partial
from pathlib import Path

import pytest

from serve_app.cli.captioning.outputs.ledger import Ledger
from serve_app.cli.captioning.outputs.rows import CaptionSettings, Row
from tests.cli_fake import EXPECTED, NUM_IMAGES, FakeApi, captions, failure, run, start, wait_for

pytestmark = pytest.mark.engine


def has_seen(api: FakeApi, num_answers: int) -> bool:
    return api.seen.total() >= num_answers


@pytest.mark.parametrize("output", ["o.jsonl", "o.csv", "txt"])
def test_killed_and_continued(api: FakeApi, url: str, folder: Path, output: str) -> None:
    api.delay_s = 0.1
    for num_answers in (15, 40):
        process = start("caption", "in", "-o", output, "--concurrency", "4", url=url, cwd=folder)
        wait_for(partial(has_seen, api, num_answers))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    num_kept = sum(captions(folder, output).values()) if output != "o.csv" else None
    api.delay_s = 0
    done = run("caption", "in", "-o", output, url=url, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert captions(folder, output) == EXPECTED
    assert num_kept is None or f"{NUM_IMAGES - num_kept} captioned; {num_kept} done before" in done.stderr.decode()
    assert not list((folder / "in").glob(".*.tmp")) or output == "txt"


def test_failures_wait_for_retry_failed(api: FakeApi, url: str, folder: Path) -> None:
    api.fault = lambda content, n: failure(400, "invalid_image", "no") if content == "p5" and n == 1 else None
    for output, num_seen in (("o.csv", 2), ("txt", 3)):
        arguments = ["caption", "in", "-o", output]
        if output == "txt":
            api.fault = lambda content, n: failure(400, "bad", "no") if content == "p5" and n == 3 else None
        assert run(*arguments, url=url, cwd=folder).returncode == 1
        again = run(*arguments, url=url, cwd=folder)
        assert again.returncode == 1
        assert b"1 failed before (--retry-failed tries them again)" in again.stderr
        assert run(*arguments, "--retry-failed", url=url, cwd=folder).returncode == 0
        assert api.seen["p5"] == num_seen + (output == "txt")
    assert captions(folder, "txt") == EXPECTED
    rows = [json.loads(line) for line in (folder / "in/serve-app-captions.jsonl").read_text().splitlines()]
    assert len(rows) == NUM_IMAGES
    assert not any("error" in row for row in rows)


def test_asking_otherwise_is_another_caption(api: FakeApi, url: str, folder: Path) -> None:
    for style in ("short", "tags", "tags"):
        assert run("caption", "in", "-o", "o.jsonl", "--style", style, url=url, cwd=folder).returncode == 0
    assert api.seen.total() == 2 * NUM_IMAGES
    absolute = run("caption", folder / "in", "-o", "o.jsonl", "--style", "tags", url=url, cwd=folder)
    assert f"{NUM_IMAGES} done before".encode() in absolute.stderr
    assert run("caption", "in", "-o", "o.jsonl", "--overwrite", url=url, cwd=folder).returncode == 0
    assert captions(folder, "o.jsonl") == EXPECTED


def test_images_that_share_a_stem_have_their_own_text(api: FakeApi, url: str, tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "A.gif", "b.jpg", "c.jpg", "c.jpg.png"]
    for name in names:
        (tmp_path / name).write_text(name)
    for limit in ("2", "9", "9"):
        assert run("caption", ".", "-o", "txt", "--limit", limit, url=url, cwd=tmp_path).returncode == 0
    found = {path.name: path.read_text() for path in tmp_path.glob("*.txt")}
    beside = ["a.jpg.txt", "a.png.txt", "A.gif.txt", "b.txt", "c.txt", "c.jpg.png.txt"]
    assert found == {text: f"caption of {name}\n" for name, text in zip(names, beside, strict=True)}
    assert set(api.seen.values()) == {1}


@pytest.mark.parametrize("output", ["o.jsonl", "o.csv"])
def test_a_torn_record_is_dropped(tmp_path: Path, output: str) -> None:
    """Cut at every byte: whole records stay, a torn one goes, and what follows is readable."""
    path, settings = tmp_path / output, CaptionSettings(style="tags")
    made = [Row(f"{i}.jpg", settings, caption=f'line "{i}"\nnext, {i}', model="m") for i in range(3)]
    ends = []
    ledger = Ledger(str(path), settings)
    for row in made:
        ledger.write(row)
        ends.append(path.stat().st_size)
    ledger.close()
    whole = path.read_bytes()
    for num_bytes in range(len(whole) + 1):
        path.write_bytes(whole[:num_bytes])
        ledger = Ledger(str(path), settings)
        states = [ledger.state(row.file) for row in made]
        assert states == ["done" if num_bytes >= end else "new" for end in ends]
        for row, state in zip(made, states, strict=True):
            if state == "new":
                ledger.write(row)
        ledger.close()
        assert path.read_bytes() == whole

"""`serve-app caption` as a real process against a real HTTP service: results, failures, exit codes."""

import csv
import json
import os
import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from tests.cli_fake import FakeApi, failure, free_port, run

pytestmark = pytest.mark.engine


def rows(path: Path) -> dict[str, Any]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["file"] for row in found}) == len(found)
    return {row["file"]: row for row in found}


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_one_image_is_a_caption_on_stdout(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "cat.JPG")
    done = run("caption", "cat.JPG", "--style", "tags", "--seed", "3", "--model", "m", url=url, cwd=tmp_path,
               SERVE_APP_API_KEY="k-1")  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"caption of cat.JPG\n"), done.stderr
    assert api.forms == [{"model": "m", "style": "tags", "seed": "3"}]
    assert api.headers[0]["authorization"] == "Bearer k-1"
    assert b"k-1" not in done.stderr


def test_several_images_are_lines_of_file_and_caption(url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b c.png")
    done = run("caption", "a.jpg", "b c.png", url=url, cwd=tmp_path)
    assert sorted(done.stdout.splitlines()) == [b"a.jpg\tcaption of a.jpg", b"b c.png\tcaption of b c.png"]


def test_the_row_says_what_was_asked_and_answered(url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    assert run("caption", "a.jpg", "-o", "o.jsonl", "--prompt", "Say?", url=url, cwd=tmp_path).returncode == 0
    assert rows(tmp_path / "o.jsonl")["a.jpg"] == {
        "file": "a.jpg", "caption": "caption of a.jpg", "model": "m", "style": None, "prompt": "Say?",
        "asked_model": None, "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }  # fmt: skip


DETAIL = ("--length", "80", "--option", "include_lighting", "--option", "exclude_text", "--name", "Ann")


@pytest.mark.parametrize("output", ["o.jsonl", "o.csv"])
def test_length_options_and_name_are_sent_and_decide_what_counts_as_done(
    api: FakeApi, url: str, tmp_path: Path, output: str
) -> None:
    write(tmp_path, "a.jpg")
    asked = ("caption", "a.jpg", "-o", output, "--style", "Descriptive")
    for detail in (DETAIL, DETAIL, (), DETAIL[:2], DETAIL[:2], ()):
        done = run(*asked, *detail, url=url, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    sent = {"style": "Descriptive", "length": "80", "options": ["include_lighting", "exclude_text"], "name": "Ann"}
    assert api.forms == [sent, {"style": "Descriptive"}, {"style": "Descriptive", "length": "80"}]


def test_an_option_that_isnt_there_ends_the_run(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.jpg")
    api.fault = lambda content, _: failure(400, "c", "options[0]: 'x' is unknown", param="options[0]")
    done = run("caption", ".", "-o", "o.jsonl", "--option", "x", url=url, cwd=tmp_path)
    assert done.returncode == 2
    assert b"'x' is unknown" in done.stderr
    assert sum(api.seen.values()) <= 2


NASTY: list[str | bytes] = [
    "spa ce.jpg", "ünï.png", "new\nline.webp", "quote\",'.gif", "cr\rlf.bmp", b"caf\xe9.tif", "-dash.avif",
]  # fmt: skip


@pytest.mark.parametrize("output", ["o.jsonl", "o.csv"])
def test_any_file_name_survives(api: FakeApi, url: str, tmp_path: Path, output: str) -> None:
    (tmp_path / "in").mkdir()
    names = [os.fsdecode(name) for name in NASTY]
    for index, name in enumerate(names):
        (tmp_path / "in" / name).write_text(f"n{index}")
    for _ in range(2):
        done = run("caption", "in", "-o", output, url=url, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    expected = {os.path.join("in", name): f"caption of n{index}" for index, name in enumerate(names)}
    if output.endswith("csv"):
        with open(tmp_path / output, newline="", encoding="utf-8", errors="surrogateescape") as file:
            found = {row["file"]: row["caption"] for row in csv.DictReader(file)}
    else:
        found = {file: row["caption"] for file, row in rows(tmp_path / output).items()}
    assert found == expected
    assert set(api.seen.values()) == {1}


def test_bad_images_keep_their_reason_and_shift_nobody(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "in/a.jpg", "in/bad.jpg", "in/c.jpg")
    os.symlink("nowhere", tmp_path / "in/gone.jpg")
    (tmp_path / "in/huge.png").write_bytes(b"x" * 6_000_000)
    api.fault = lambda content, _: failure(400, "invalid_image", "not an image") if "bad" in content else None
    done = run("caption", "in", "-o", "o.jsonl", url=url, cwd=tmp_path)
    found = rows(tmp_path / "o.jsonl")
    assert done.returncode == 1
    assert found["in/bad.jpg"]["error"] == {"code": "invalid_image", "message": "not an image"}
    assert found["in/gone.jpg"]["error"]["code"] == "unreadable_file"
    assert found["in/huge.png"]["error"]["code"] in ("body_too_large", "connection_broken")
    assert found["in/c.jpg"]["caption"] == "caption of in/c.jpg"
    assert b"2 captioned; 3 failed (reasons in o.jsonl)" in done.stderr


def test_what_is_no_image_is_passed_over_and_loops_end(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "in/z.jpg", "in/sub/b.jpg", "in/.hidden.jpg", "in/note.txt", "in/.git/c.jpg")
    os.symlink("..", tmp_path / "in/sub/loop")
    os.symlink("self.png", tmp_path / "in/self.png")
    os.mkfifo(tmp_path / "in/pipe.jpg")
    done = run("caption", "in", "in/z.jpg", "-o", "o.jsonl", url=url, cwd=tmp_path)
    assert set(rows(tmp_path / "o.jsonl")) == {"in/z.jpg", "in/sub/b.jpg", "in/self.png"}
    assert b"2 hidden and 2 other files passed over" in done.stderr
    flat = run("caption", "in", "--no-recursive", "-o", "flat.jsonl", url=url, cwd=tmp_path)
    assert set(rows(tmp_path / "flat.jsonl")) == {"in/z.jpg", "in/self.png"}, flat.stderr


def test_patterns_and_limit(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "in/a.jpg", "in/b.jpg", "in/c.png")
    assert run("caption", "in/*.jpg", "-o", "o.csv", "--limit", "1", url=url, cwd=tmp_path).returncode == 0
    assert set(api.seen) == {"in/a.jpg"}
    assert run("caption", "in/*.jpg", "-o", "o.csv", "--limit", "9", url=url, cwd=tmp_path).returncode == 0
    assert api.seen == {"in/a.jpg": 1, "in/b.jpg": 1}


def test_a_refusal_holds_all_workers_back(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, *(f"in/{n}.jpg" for n in range(12)))
    refused_at: list[float] = []
    arrivals: list[float] = []

    def fault(content: str, num_times: int) -> Response | None:
        arrivals.append(time.monotonic())
        if refused_at:
            return None
        refused_at.append(time.monotonic())
        return failure(503, "overloaded", "full", retry_after="1")

    api.fault = fault
    assert run("caption", "in", "-o", "o.jsonl", "--concurrency", "2", url=url, cwd=tmp_path).returncode == 0
    assert sum(refused_at[0] + 0.3 < at < refused_at[0] + 0.95 for at in arrivals) == 0
    assert len(rows(tmp_path / "o.jsonl")) == 12


def test_a_date_in_retry_after_and_passing_faults(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "in/date.jpg", "in/broken.jpg", "in/poison.jpg", "in/ok.jpg")
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)

    def fault(content: str, num_times: int) -> Response | None:
        if "date" in content and num_times == 1:
            return failure(429, "overloaded", "slow down", retry_after=date)
        if "broken" in content and num_times == 1:
            return failure(500, "engine_failed", "oops")
        return failure(503, "replica_died", "it died") if "poison" in content else None

    api.fault = fault
    assert run("caption", "in", "--together", "1", "-o", "o.jsonl", url=url, cwd=tmp_path).returncode == 1
    found = rows(tmp_path / "o.jsonl")
    assert [name for name, row in found.items() if "error" in row] == ["in/poison.jpg"]
    assert api.seen["in/poison.jpg"] == 4


def test_dropped_connections_are_tried_again(tmp_path: Path) -> None:
    """A service that greets and then closes every connection without an answer."""
    write(tmp_path, "a.jpg")
    listener = socket.create_server(("127.0.0.1", 0))
    num_uploads = 0

    def serve() -> None:
        nonlocal num_uploads
        while True:
            connection, _ = listener.accept()
            with connection:
                if connection.recv(65536).startswith(b"GET"):
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
                else:
                    num_uploads += 1

    threading.Thread(target=serve, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    done = run("caption", "a.jpg", "-o", "o.jsonl", url=url, cwd=tmp_path)
    assert done.returncode == 1
    assert num_uploads == 4
    assert rows(tmp_path / "o.jsonl")["a.jpg"]["error"]["code"] == "connection_broken"


def test_no_service_is_said_at_once(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    url = f"http://127.0.0.1:{free_port()}"
    done = run("caption", "a.jpg", url=url, cwd=tmp_path)
    assert done.returncode == 3
    assert f"No service answers at {url}: start one with `serve-app up` or pass --url" in done.stderr.decode()


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (failure(404, "model_not_found", "no model 'x': did you mean 'm'?"), "did you mean 'm'?"),
        (failure(401, "invalid_api_key", "wrong key"), "SERVE_APP_API_KEY"),
    ],
)
def test_what_concerns_the_run_ends_it(
    api: FakeApi, url: str, tmp_path: Path, error: Response, sentence: str
) -> None:
    write(tmp_path, "in/a.jpg", "in/b.jpg")
    api.fault = lambda *_: error
    done = run("caption", "in", "-o", "o.jsonl", url=url, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr.decode()
    assert (tmp_path / "o.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing.jpg"], "No image, folder or pattern matches 'nothing.jpg'"),
        (["."], "No images there. 1 other files passed over"),
        ([".", "-o", "out.xml"], "name a file that ends in .jsonl, .csv, .parquet or .tar, or write txt"),
        ([".", "-o", "taken.jsonl"], "holds something else than captions"),
        ([".", "--url", "localhost:8000"], "isn't an address"),
    ],
)
def test_mistakes_are_named(url: str, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    (tmp_path / "taken.jsonl").write_text("my notes")
    done = run("caption", *arguments, url=url, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr.decode()
    assert (tmp_path / "taken.jsonl").read_text() == "my notes"

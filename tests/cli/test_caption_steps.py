"""What `serve-app caption` does around a caption: a second model, several captions, duplicates, reports."""

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from starlette.responses import JSONResponse, Response

from tests import own_answers
from tests.cli_fake import FakeApi, failure, run, start, wait_for

pytestmark = pytest.mark.engine


def rows(folder: Path) -> dict[str, Any]:
    return {row["file"]: row for row in map(json.loads, (folder / "o.jsonl").read_text().splitlines())}


def images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(name.partition(".")[0])


REWRITE = ("--rewrite", "Shorter: {caption} ({name}, {tags})", "--context-extension", ".tags", "-o", "o.jsonl")


def test_a_second_model_writes_the_text_anew(api: FakeApi, url: str, tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "a.tags").write_text("sea")
    api.chat_answer = lambda text, _: JSONResponse(own_answers.chat_answer(f" rewritten {text} "))
    arguments = ("caption", "a.jpg", "b.jpg", *REWRITE, "--rewrite-model", "writer", "--prepend", "sks, ")
    assert run(*arguments, url=url, cwd=tmp_path).returncode == 0
    row = rows(tmp_path)["a.jpg"]
    assert row["caption"] == "sks, rewritten Shorter: caption of a (a, sea)"
    assert row["original"] == "caption of a"
    assert {chat["model"] for chat in api.chats} == {"writer"}
    assert all("rewrite" not in form for form in api.forms)
    assert b"2 done before" in run(*arguments, url=url, cwd=tmp_path).stderr
    other = run("caption", "a.jpg", "b.jpg", "-o", "o.jsonl", url=url, cwd=tmp_path)
    assert b"2 captioned" in other.stderr  # without the second model something else was asked


def test_a_failure_of_the_second_model_asks_the_first_no_more(api: FakeApi, url: str, tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg", "c.jpg")

    def answer(text: str, num_times: int) -> Response:
        if "of a" in text and num_times < 3:
            return failure(503, "overloaded", "busy", retry_after="0")
        if "of b" in text:
            return failure(400, "context_length_exceeded", "the prompt is too long: write less")
        if "of c" in text:
            return JSONResponse(own_answers.chat_answer(" "))
        return JSONResponse(own_answers.chat_answer("fine", "length"))

    api.chat_answer = answer
    done = run("caption", "a.jpg", "b.jpg", "c.jpg", *REWRITE, url=url, cwd=tmp_path)
    assert done.returncode == 1
    by_file = rows(tmp_path)
    assert (by_file["a.jpg"]["caption"], by_file["a.jpg"]["finish_reason"]) == ("fine", "length")
    assert by_file["b.jpg"]["error"]["code"] == "context_length_exceeded"
    assert by_file["c.jpg"]["error"]["code"] == "empty_caption"
    assert [api.seen[name] for name in "abc"] == [1, 1, 1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--rewrite", "no field"), b"needs {caption}"),
        (("--rewrite", "{caption}", "--n", "2"), b"one caption an image"),
        (("--rewrite-model", "m"), b"goes with --rewrite"),
        (("--gallery",), b"name one with --output"),
        (("--shard-images", "5"), b"--shard-images goes with"),
        (("--split", "train"), b"--split goes with --dataset"),
    ],
)
def test_options_that_do_not_go_together(
    url: str, tmp_path: Path, arguments: tuple[str, ...], sentence: bytes
) -> None:
    images(tmp_path, "a.jpg")
    refused = run("caption", "a.jpg", *arguments, url=url, cwd=tmp_path)
    assert refused.returncode == 2
    assert sentence in refused.stderr


def test_a_second_model_that_is_not_there_ends_the_run(api: FakeApi, url: str, tmp_path: Path) -> None:
    images(tmp_path, "a.jpg", "b.jpg")
    api.chat_answer = lambda *_: failure(404, "model_not_found", "no model 'x'", "model")
    refused = run("caption", "a.jpg", "b.jpg", *REWRITE, url=url, cwd=tmp_path)
    assert refused.returncode == 2
    assert b"no model 'x'" in refused.stderr
    assert (tmp_path / "o.jsonl").read_text() == ""


@pytest.mark.parametrize("output", ["o.jsonl", "txt"])
def test_several_captions_of_an_image(api: FakeApi, url: str, tmp_path: Path, output: str) -> None:
    images(tmp_path, "a.jpg")
    api.fault = lambda *_: JSONResponse(own_answers.caption_answer("one\nmore", "two"))
    done = run("caption", "a.jpg", "--n", "2", "--prepend", "sks ", "-o", output, url=url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert api.forms[0]["n"] == "2"
    if output == "txt":
        assert (tmp_path / "a.txt").read_text() == "sks one more\nsks two\n"
    else:
        assert [each["caption"] for each in rows(tmp_path)["a.jpg"]["captions"]] == ["sks one\nmore", "sks two"]


def draw(path: Path, shift_px: int = 0, edge_px: int = 400, quality: int = 90) -> None:
    image = Image.new("RGB", (400, 300), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((40 + shift_px, 40, 200 + shift_px, 200), fill="red")
    pen.rectangle((220, 120 - shift_px, 380, 280 - shift_px), fill="blue")
    image.resize((edge_px, edge_px * 3 // 4)).save(path, quality=quality)


def test_near_duplicates_are_told_apart_from_equal_files(api: FakeApi, url: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    draw(tmp_path / "in/a.jpg")
    (tmp_path / "in/b.jpg").write_bytes((tmp_path / "in/a.jpg").read_bytes())
    draw(tmp_path / "in/c.jpg", edge_px=200, quality=40)
    draw(tmp_path / "in/d.jpg", shift_px=110)
    (tmp_path / "in/e.jpg").write_text("no image")
    api.fault = lambda content, _: (
        failure(400, "invalid_image", "broken") if content == "no image" else
        JSONResponse(own_answers.caption_answer(f"caption {len(content)}"))
    )  # fmt: skip
    arguments = ("caption", "in", "-o", "o.jsonl", "--concurrency", "1")
    done = run(*arguments, "--near-duplicates", "6", url=url, cwd=tmp_path)
    assert b"4 captioned; 1 failed" in done.stderr
    assert b"1 of them the same as another; 1 of them nearly the same as another" in done.stderr
    by_file = rows(tmp_path)
    assert len({by_file[f"in/{name}.jpg"]["caption"] for name in "abc"}) == 1
    assert {name: by_file[f"in/{name}.jpg"].get("same_as") for name in "abcd"} == {
        "a": None, "b": "in/a.jpg", "c": "in/a.jpg", "d": None,
    }  # fmt: skip
    assert by_file["in/d.jpg"]["caption"] != by_file["in/a.jpg"]["caption"]
    assert by_file["in/e.jpg"]["error"]["code"] == "invalid_image"


def test_the_report_of_a_run_and_of_its_output(api: FakeApi, url: str, folder: Path) -> None:
    api.fault = lambda content, _: (
        failure(400, "invalid_image", "broken") if content == "p7" else
        JSONResponse(own_answers.caption_answer(" ".join(["word"] * (int(content[1:]) % 5 + 1))))
    )  # fmt: skip
    done = run("caption", "in", "-o", "o.parquet", "--gallery", url=url, cwd=folder)
    assert b"59 captioned; 1 failed (reasons in o.parquet)" in done.stderr
    assert b"failed: 1 invalid_image" in done.stderr
    assert b"3 words a caption (1 to 5): " in done.stderr
    assert b"o.parquet.html: 60 images" in done.stderr
    assert "invalid_image" in (folder / "o.parquet.html").read_text()
    for output in ("o.parquet", "o.csv", "o.jsonl", "t-%03d.tar", "dataset:ds", "txt"):
        if output != "o.parquet":
            run("caption", "in", "-o", output, url=url, cwd=folder)
        told = run("report", "in" if output == "txt" else output, "--json", url=url, cwd=folder)
        counts = json.loads(told.stdout)
        assert (counts["captioned"], counts["failed"], counts["failures"]) == (59, 1, {"invalid_image": 1})
        assert Counter(counts["words"]) == Counter({"1": 12, "2": 12, "3": 11, "4": 12, "5": 12})
    lines = run("report", "o.csv", url=url, cwd=folder).stdout.decode().splitlines()
    assert lines[0] == "59 captioned; 1 failed"


def test_a_signal_tells_where_a_run_is(api: FakeApi, url: str, folder: Path) -> None:
    api.delay_s = 0.3
    process = start("caption", "in", "-o", "o.jsonl", "--concurrency", "4", url=url, cwd=folder)
    wait_for(lambda: api.seen.total() >= 8)
    process.send_signal(signal.SIGUSR1)
    assert process.stderr
    assert b" of 60 " in process.stderr.readline()
    assert b"captions/s" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert os.path.getsize(folder / "o.jsonl") > 0

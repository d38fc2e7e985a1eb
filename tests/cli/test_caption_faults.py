"""`serve-app caption` among people's folders, files and programs: nothing lost, doubled or mislabelled."""

import csv
import json
import os
import shutil
import signal
import subprocess
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.responses import JSONResponse, Response

from tests import own_answers
from tests.cli_fake import FakeApi, command, failure, run, start, wait_for
from tests.drawings import png

pytestmark = pytest.mark.engine

LEDGER = "serve-app-captions.jsonl"


def write(folder: Path, *names: str, data: bytes | None = None) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() if data is None else data)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text().strip() for path in sorted(folder.rglob("*.txt"))}


def printed(done: "subprocess.CompletedProcess[bytes]") -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return dict(line.split("\t", 1) for line in done.stdout.decode().split("\n") if line)


def answer(text: str, finish_reason: str = "stop") -> Response:
    value = own_answers.caption_answer(text)
    value["data"][0]["finish_reason"] = finish_reason
    return JSONResponse(value)


# A success that wasn't


def test_a_text_that_cant_be_written_is_a_failure(url: str, tmp_path: Path) -> None:
    long = "y" * 250
    write(tmp_path, f"{long}.jpg", f"{long}.png", "b.jpg", "c.jpg")
    (tmp_path / "b.txt").mkdir()
    done = run("caption", ".", "-o", "txt", url=url, cwd=tmp_path)
    assert done.returncode == 1
    assert b"1 captioned; 3 failed (reasons in serve-app-captions.jsonl beside the images)" in done.stderr
    found = {row["file"]: row for row in rows(tmp_path / LEDGER)}
    assert found["b.jpg"]["error"] == {
        "code": "text_not_written",
        "message": "its text b.txt can't be written: Is a directory",
    }
    assert "File name too long" in found[f"{long}.png"]["error"]["message"]
    assert not list(tmp_path.glob(".serve-app*"))
    (tmp_path / "b.txt").rmdir()
    again = run("caption", ".", "-o", "txt", "--retry-failed", url=url, cwd=tmp_path)
    assert b"1 captioned; 2 failed" in again.stderr
    assert [row["file"] for row in rows(tmp_path / LEDGER)].count("b.jpg") == 1


def test_a_folder_whose_texts_cant_be_kept_is_told_and_not_asked_for(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "in/a/1.jpg", "in/b/2.jpg", "in/b/3.jpg", "in/c/4.jpg")
    (tmp_path / "in/b" / LEDGER).mkdir()
    done = run("caption", "in", "-o", "txt", url=url, cwd=tmp_path)
    assert done.returncode == 1
    assert b"2 captioned; 2 not tried" in done.stderr
    assert done.stderr.count(b"in/b: ") == 1
    assert set(api.seen) == {"in/a/1.jpg", "in/c/4.jpg"}


@pytest.mark.parametrize("output", ["o.jsonl", "o.csv", "txt"])
def test_a_caption_without_a_word_is_a_failure(api: FakeApi, url: str, tmp_path: Path, output: str) -> None:
    write(tmp_path, "a.jpg")
    api.fault = lambda content, n: answer(" \n") if n == 1 else None
    done = run("caption", "a.jpg", "-o", output, url=url, cwd=tmp_path)
    assert done.returncode == 1
    assert b"0 captioned; 1 failed" in done.stderr
    assert not texts(tmp_path)
    assert run("caption", "a.jpg", "-o", output, "--retry-failed", url=url, cwd=tmp_path).returncode == 0
    if output.endswith("jsonl"):
        assert [row.get("caption") for row in rows(tmp_path / output)] == ["caption of a.jpg"]


@pytest.mark.parametrize("output", ["o.jsonl", "o.csv", "txt"])
def test_a_caption_that_was_cut_is_told_and_asked_again(api: FakeApi, url: str, tmp_path: Path, output: str) -> None:
    write(tmp_path, "a.jpg", "b.jpg")
    api.fault = lambda content, n: answer("A large", "length") if content == "a.jpg" and n == 1 else None
    first = run("caption", ".", "-o", output, "--max-tokens", "3", url=url, cwd=tmp_path)
    assert b"2 captioned; 1 cut short at 3 tokens (a larger --max-tokens asks again)" in first.stderr
    same = run("caption", ".", "-o", output, "--max-tokens", "3", url=url, cwd=tmp_path)
    assert b"0 captioned; 2 done before" in same.stderr
    assert run("caption", ".", "-o", output, "--max-tokens", "300", url=url, cwd=tmp_path).returncode == 0
    assert api.seen == {"a.jpg": 2, "b.jpg": 1}
    path = tmp_path / (LEDGER if output == "txt" else output)
    with open(path, newline="") as file:
        found = list(csv.DictReader(file)) if output.endswith("csv") else rows(path)
    assert sorted((row["file"], row["caption"]) for row in found) == [
        ("a.jpg", "caption of a.jpg"), ("b.jpg", "caption of b.jpg"),
    ]  # fmt: skip


def test_a_cut_text_that_was_corrected_by_hand_stays(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.jpg")
    api.fault = lambda content, n: answer("A large", "length") if n == 1 else None
    run("caption", ".", "-o", "txt", "--max-tokens", "3", url=url, cwd=tmp_path)
    (tmp_path / "a.txt").write_text("A large red circle.\n")
    run("caption", ".", "-o", "txt", "--max-tokens", "300", url=url, cwd=tmp_path)
    assert texts(tmp_path) == {"a.txt": "A large red circle.", "b.txt": "caption of b.jpg"}


@pytest.mark.parametrize("how", ["replaced", "deleted", "appended"])
def test_an_output_that_changes_meanwhile_ends_the_run(api: FakeApi, url: str, tmp_path: Path, how: str) -> None:
    write(tmp_path, *(f"in/{n:02}.jpg" for n in range(40)))
    api.delay_s = 0.1
    process = start("caption", "in", "-o", "o.jsonl", "--concurrency", "4", url=url, cwd=tmp_path)
    path = tmp_path / "o.jsonl"
    wait_for(lambda: path.exists() and len(rows(path)) >= 8)
    if how == "replaced":
        (tmp_path / "x").write_bytes(path.read_bytes())
        os.replace(tmp_path / "x", path)
    elif how == "deleted":
        path.unlink()
    else:
        with open(path, "a") as file:
            file.write("my note\n")
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"o.jsonl was changed, replaced or deleted by another program" in errors
    api.delay_s = 0
    run("caption", "in", "-o", "o.jsonl", url=url, cwd=tmp_path)
    found = [json.loads(line) for line in path.read_text().splitlines() if line != "my note"]
    assert sorted(row["file"] for row in found) == [f"in/{n:02}.jpg" for n in range(40)]


# What a row's path means


def test_one_output_for_folders_with_equal_names(url: str, tmp_path: Path) -> None:
    write(tmp_path, "day1/1.jpg", "day2/1.jpg")
    for day in ("day1", "day2"):
        assert run("caption", ".", "-o", "../all.jsonl", url=url, cwd=tmp_path / day).returncode == 0
    assert [row["file"] for row in rows(tmp_path / "all.jsonl")] == ["day1/1.jpg", "day2/1.jpg"]


@pytest.mark.parametrize("output", ["c.jsonl", "c.csv"])
def test_an_image_is_known_again_however_it_is_reached(api: FakeApi, url: str, tmp_path: Path, output: str) -> None:
    write(tmp_path, "set/in/1.jpg")
    os.symlink("set", tmp_path / "link")
    out = tmp_path / "set" / output
    for folder, cwd in (("in", tmp_path / "set"), (tmp_path / "set/in", Path("/")), ("link/in", tmp_path),
                        ("../in", tmp_path / "set/in")):  # fmt: skip
        assert run("caption", folder, "-o", out, url=url, cwd=cwd).returncode == 0
    shutil.move(tmp_path / "set", tmp_path / "moved")
    done = run("caption", "moved/in", "-o", f"moved/{output}", url=url, cwd=tmp_path)
    assert b"1 done before" in done.stderr
    assert api.seen.total() == 1


# The wrong image


def test_the_path_after_a_link_leads_where_the_system_says(url: str, tmp_path: Path) -> None:
    write(tmp_path, "data/a.jpg", "work/a.jpg", "data/deep/x.jpg")
    os.symlink("../data/deep", tmp_path / "work/link")
    done = run("caption", "work/link/../a.jpg", url=url, cwd=tmp_path)
    assert done.stdout == b"caption of data/a.jpg\n"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("set [v1]/*.jpg", {"set [v1]/a.jpg"}),
        ("set [v1]/[ab].jpg", {"set [v1]/a.jpg"}),
        ("set v*/*", {"set v/b.jpg"}),
        ("*/a.jpg", {"set [v1]/a.jpg"}),
        ("**/*.jpg", {"set [v1]/a.jpg", "set v/b.jpg", "top.jpg"}),
        ("[st]*.jpg", {"top.jpg"}),
        ("./set v/../set v/b.jpg", {"set v/../set v/b.jpg"}),
    ],
)
def test_a_pattern_takes_names_that_are_there_as_they_are(
    url: str, tmp_path: Path, pattern: str, expected: set[str]
) -> None:
    write(tmp_path, "set [v1]/a.jpg", "set v/b.jpg", "top.jpg")
    done = run("caption", pattern, "-o", "-", url=url, cwd=tmp_path)
    assert {json.loads(line)["file"] for line in done.stdout.splitlines()} == expected


def test_a_neighbour_that_comes_or_goes_moves_no_text(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.jpg", "b.png")
    run("caption", ".", "-o", "txt", url=url, cwd=tmp_path)
    (tmp_path / "a.txt").write_text("corrected by hand")
    write(tmp_path, "a.png")
    (tmp_path / "b.png").unlink()
    for _ in range(2):
        assert run("caption", ".", "-o", "txt", url=url, cwd=tmp_path).returncode == 0
    assert set(api.seen.values()) == {1}
    assert texts(tmp_path) == {
        "a.txt": "corrected by hand", "a.png.txt": "caption of a.png", "b.jpg.txt": "caption of b.jpg",
        "b.png.txt": "caption of b.png",
    }  # fmt: skip


def test_a_text_that_somebody_else_wrote_is_of_all_images_of_its_name(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "a.png", "b.jpg", "b.psd", "a.txt")
    assert run("caption", "a.jpg", "a.png", "b.jpg", "-o", "txt", url=url, cwd=tmp_path).returncode == 0
    assert texts(tmp_path) == {"a.txt": "a.txt", "b.txt": "caption of b.jpg"}


# What is passed over


def test_files_are_known_by_their_bytes(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jfif", "b.jpe", "c", "d.apng", "e.mpo", "f.part", data=png("red", "circle"))
    write(tmp_path, "notes.txt", "g", "h.md")
    done = run("caption", ".", url=url, cwd=tmp_path)
    assert set(printed(done)) == {"a.jfif", "b.jpe", "c", "d.apng", "e.mpo", "f.part"}
    assert b"3 other files passed over" in done.stderr
    assert run("caption", "c", url=url, cwd=tmp_path).returncode == 0
    assert {headers["content-type"].partition(";")[0] for headers in api.headers} == {"multipart/form-data"}


def test_images_that_no_service_takes_are_failures_with_a_reason(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "ok.jpg")
    write(tmp_path, "c.psd", data=b"8BPS\0\1")
    write(tmp_path, "d.NEF", data=b"MM\0*\0\0\0\x08")
    write(tmp_path, "e.mp4", data=b"\0\0\0\x18ftypisom")
    done = run("caption", ".", "-o", "o.jsonl", url=url, cwd=tmp_path)
    assert done.returncode == 1
    reasons = {row["file"]: row["error"]["message"] for row in rows(tmp_path / "o.jsonl") if "error" in row}
    kinds = {"c.psd": "a Photoshop file", "d.NEF": "camera RAW"}
    assert reasons.keys() == kinds.keys()
    assert all(f"the file is {kind}, which no service takes" in reasons[name] for name, kind in kinds.items())
    assert b"2 other files passed over" in done.stderr  # the film and the output
    only = ("--exclude", "c.*", "--exclude", "*.NEF")
    assert run("caption", ".", "-o", "q.jsonl", *only, url=url, cwd=tmp_path).returncode == 0


def test_thumbnails_and_deleted_files_of_file_servers_are_passed_over(url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "@eaDir/a.jpg/SYNO_THUMB_M.jpg", "__MACOSX/b.jpg", "#recycle/c.jpg",
    "$RECYCLE.BIN/d.jpg",
          "drafts/e.jpg", "sub/drafts/f.jpg")  # fmt: skip
    done = run("caption", ".", "--exclude", "drafts", url=url, cwd=tmp_path)
    assert set(printed(done)) == {"a.jpg"}


# Outputs that somebody edited, and two runs


def test_a_csv_whose_columns_were_moved_and_added_to_is_read_by_its_header(url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.jpg")
    run("caption", "a.jpg", "-o", "o.csv", url=url, cwd=tmp_path)
    with open(tmp_path / "o.csv", newline="") as file:
        table = list(csv.reader(file))
    with open(tmp_path / "o.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(
            [["ok" if n == 0 else "yes", row[1], row[0], *row[2:]] for n, row in enumerate(table)]
        )
    done = run("caption", ".", "-o", "o.csv", url=url, cwd=tmp_path)
    assert b"1 captioned; 1 done before" in done.stderr
    with open(tmp_path / "o.csv", newline="", encoding="utf-8-sig") as file:
        found = [(row["file"], row["caption"], row["ok"]) for row in csv.DictReader(file)]
    assert found == [("a.jpg", "caption of a.jpg", "yes"), ("b.jpg", "caption of b.jpg", "")]


def test_the_mark_that_excel_puts_before_a_csv_is_no_part_of_it(url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    run("caption", ".", "-o", "o.csv", url=url, cwd=tmp_path)
    (tmp_path / "o.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "o.csv").read_bytes())
    done = run("caption", ".", "-o", "o.csv", url=url, cwd=tmp_path)
    assert b"0 captioned; 1 done before" in done.stderr
    assert run("gallery", "o.csv", url=url, cwd=tmp_path).stdout == b"o.csv.html: 1 images\n"


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda text: text.replace(",error_code,", ",", 1), "o.csv has no column 'error_code' any more"),
        (lambda text: text.replace(",more\r\n", ",file\r\n", 1), "o.csv has two columns of one name"),
        (lambda text: text.replace(",", ";"), "o.csv holds something else than captions"),
        (lambda text: "name,age\n", "o.csv holds something else than captions"),
    ],
)  # fmt: skip
def test_a_csv_that_isnt_ours_any_more_is_refused(url: str, tmp_path: Path, edit: Any, sentence: str) -> None:
    write(tmp_path, "a.jpg")
    run("caption", ".", "-o", "o.csv", url=url, cwd=tmp_path)
    text = edit((tmp_path / "o.csv").read_bytes().decode())
    (tmp_path / "o.csv").write_bytes(text.encode())
    done = run("caption", ".", "-o", "o.csv", url=url, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr.decode()
    assert (tmp_path / "o.csv").read_bytes().decode() == text


def test_two_runs_share_overlapping_folders_without_doing_anything_twice(
    api: FakeApi, url: str, tmp_path: Path
) -> None:
    write(tmp_path, *(f"{folder}/{n:02}.jpg" for folder in "AB" for n in range(20)))
    api.delay_s = 0.2
    first = start("caption", "A", "B", "-o", "txt", "--concurrency", "2", url=url, cwd=tmp_path)
    wait_for(lambda: len(texts(tmp_path)) >= 2)
    second = start("caption", "B", "A", "-o", "txt", "--concurrency", "2", url=url, cwd=tmp_path)
    said = [(process.communicate(timeout=60)[1].decode(), process.returncode) for process in (first, second)]
    assert set(api.seen.values()) == {1}
    assert any("another run is writing to" in errors and code in (1, 2) for errors, code in said), said
    assert run("caption", ".", "-o", "txt", url=url, cwd=tmp_path).returncode == 0
    assert len(texts(tmp_path)) == 40
    assert set(api.seen.values()) == {1}


def test_ctrl_c_of_an_overwriting_run_says_how_to_continue(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, *(f"in/{n:02}.jpg" for n in range(30)))
    api.delay_s = 0.1
    process = start("caption", "in", "-o", "o.jsonl", "--overwrite", "--concurrency", "4", url=url, cwd=tmp_path)
    wait_for(lambda: api.seen.total() >= 8)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert b"run it without --overwrite to continue" in errors
    had = len(rows(tmp_path / "o.jsonl"))
    api.seen.clear()
    assert run("caption", "in", "-o", "o.jsonl", url=url, cwd=tmp_path).returncode == 0
    assert api.seen.total() == 30 - had


@pytest.mark.parametrize(
    ("shell", "sentence"),
    [
        ('"$@" | head -n 1', "whoever read it has gone"),
        ('"$@" > /dev/full', "stdout can't be written: No space left on device"),
        ('"$@" >&-', "stdout is closed"),
    ],
)
def test_a_stdout_that_takes_nothing_is_a_sentence(
    api: FakeApi, url: str, tmp_path: Path, shell: str, sentence: str
) -> None:
    write(tmp_path, *(f"in/{n:02}.jpg" for n in range(40)))
    api.delay_s = 0.02
    words, environment = command("caption", "in", "--concurrency", "1", url=url)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shell}", "-", *words],
        env=environment, cwd=tmp_path, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (1, 2)
    assert sentence in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


@pytest.mark.parametrize("shell", ['"$@" > /dev/full', '"$@" >&-'])
def test_other_commands_say_so_too(url: str, tmp_path: Path, shell: str) -> None:
    words, environment = command("models", url=url)
    done = subprocess.run(
        ["bash", "-c", shell, "-", *words],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


# What goes in


def test_an_image_that_is_too_large_for_the_service_is_made_smaller(api: FakeApi, url: str, tmp_path: Path) -> None:
    noise = Image.effect_noise((2600, 2600), 100).convert("RGB")
    noise.save(tmp_path / "large.png")
    assert (tmp_path / "large.png").stat().st_size > 6_000_000
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned
    tall = Image.new("RGB", (40, 20), "red")
    tall.save(tmp_path / "small.jpg", exif=exif)
    sent: list[Image.Image] = []
    api.sees_image = lambda data: sent.append(Image.open(BytesIO(data)))
    assert run("caption", "large.png", url=url, cwd=tmp_path).returncode == 0
    assert [(image.format, max(image.size) <= 3072) for image in sent] == [("JPEG", True)]
    api.fault = lambda content, n: JSONResponse(own_answers.error("image_too_large", "x"), 413) if n == 1 else None
    assert run("caption", "small.jpg", url=url, cwd=tmp_path).returncode == 0
    assert sent[-1].size == (20, 40)
    Image.new("I;16", (30, 30), 32768).save(tmp_path / "deep.png")
    assert run("caption", "deep.png", url=url, cwd=tmp_path).returncode == 0
    assert sent[-1].convert("L").getpixel((9, 9)) in range(126, 131)  # gray, not white


def test_addresses_and_lists_of_files(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "in/a.jpg", "in/b c.jpg", "in/deep/d.jpg")
    listed = b"\0".join([b"in/a.jpg", b"in/b c.jpg", b"gone.jpg", b"http://images.example/x.png"])
    done = run("caption", "in/deep", "--files-from", "-", "-o", "o.jsonl", url=url, cwd=tmp_path, stdin=listed)
    assert done.returncode == 1, done.stderr
    found = {row["file"]: row.get("caption") or row["error"]["message"] for row in rows(tmp_path / "o.jsonl")}
    assert found == {
        "in/a.jpg": "caption of in/a.jpg", "in/b c.jpg": "caption of in/b c.jpg",
        "in/deep/d.jpg": "caption of in/deep/d.jpg",
        "gone.jpg": "there is no such file", "http://images.example/x.png": "caption of http://images.example/x.png",
    }  # fmt: skip
    (tmp_path / "list.txt").write_text("in/a.jpg\r\n\nhttp://images.example/x.png\n")
    done = run("caption", "--files-from", "list.txt", "-o", "o.jsonl", url=url, cwd=tmp_path)
    assert b"0 captioned; 2 done before" in done.stderr
    alone = run("caption", "http://images.example/x.png", url=url, cwd=tmp_path)
    assert alone.stdout == b"caption of http://images.example/x.png\n"
    assert run("caption", "http://images.example/x.png", "-o", "txt", url=url, cwd=tmp_path).returncode == 2
    nothing = run("caption", url=url, cwd=tmp_path)
    assert nothing.returncode == 2
    assert b"--files-from" in nothing.stderr


def test_every_wish_is_sent_and_decides_what_counts(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    asked = ("caption", "a.jpg", "-o", "o.jsonl")
    wishes = (("--language", "de"), ("--task", "<OD>"), ("--format", "tags"), ("--temperature", "0.5"),
              ("--format", "schema.json"))  # fmt: skip
    for wish in wishes:
        for _ in range(2):
            assert run(*asked, *wish, url=url, cwd=tmp_path).returncode == 0
    run(*asked, "--language", "de", "--guard", "--seed", "3", url=url, cwd=tmp_path)
    assert run(*asked, "--overwrite", "--guard", url=url, cwd=tmp_path).returncode == 0
    assert api.forms == [
        {"language": "de"}, {"task": "<OD>"}, {"format": "tags"}, {"temperature": "0.5"},
        {"format": '{"schema": {"type": "object"}, "type": "json"}'}, {"guard": "true"},
    ]  # fmt: skip
    wrong = run(*asked, "--format", "nothing.json", url=url, cwd=tmp_path)
    assert wrong.returncode == 2
    assert b"write tags, json or the path of a JSON schema" in wrong.stderr


def test_the_answers_parts_stand_in_its_row(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    value = own_answers.caption_answer("red, circle")
    value["data"][0] |= {"tags": ["red", "circle"], "guard": {"passed": True, "findings": []}}
    api.fault = lambda *_: JSONResponse(value)
    for output in ("o.jsonl", "o.csv"):
        assert run("caption", "a.jpg", "-o", output, "--guard", url=url, cwd=tmp_path).returncode == 0
    more = {"tags": ["red", "circle"], "guard": {"passed": True, "findings": []}}
    assert more.items() <= rows(tmp_path / "o.jsonl")[0].items()
    with open(tmp_path / "o.csv", newline="") as file:
        assert json.loads(next(csv.DictReader(file))["more"]) == more


# What is written


def test_captions_are_finished_before_they_are_written(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    api.fault = lambda *_: answer("long_hair, Hat, long hair, photograph (1990s)\nsmile")
    rules = ("--prepend", "sks, ", "--append", ", best", "--drop-tag", "hat", "--spaces", "--escape-parentheses")
    asked = ("caption", "a.jpg", *rules, "--replace", "photograph=photo")
    assert (
        run(*asked, "--max-tags", "2", url=url, cwd=tmp_path).stdout.strip()
        == rb"sks, long hair, photo \(1990s\), best"
    )
    assert run(*asked, "--tag-separator", " | ", url=url, cwd=tmp_path).stdout.strip() == (
        rb"sks, long hair | photo \(1990s\) | smile, best"
    )
    sentence = run("caption", "a.jpg", "--one-line", "--append", ".", url=url, cwd=tmp_path)
    assert sentence.stdout == b"long_hair, Hat, long hair, photograph (1990s) smile.\n"
    wrong = run("caption", "a.jpg", "--replace", "photograph", url=url, cwd=tmp_path)
    assert (wrong.returncode, b"write OLD=NEW" in wrong.stderr) == (2, True)


def test_another_trigger_word_is_another_row(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    for word in ("one ", "two ", "two "):
        assert run("caption", "a.jpg", "-o", "o.jsonl", "--prepend", word, url=url, cwd=tmp_path).returncode == 0
    assert [row["caption"] for row in rows(tmp_path / "o.jsonl")] == ["one caption of a.jpg", "two caption of a.jpg"]
    assert api.forms == [{}, {}]


def test_texts_have_the_extension_that_is_asked_for_and_empty_ones_are_filled(url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.jpg", "c.jpg", "c.png", "b.txt")
    write(tmp_path, "a.txt", data=b" \n")
    assert run("caption", ".", "-o", "txt", "--fill-empty", url=url, cwd=tmp_path).returncode == 0
    assert texts(tmp_path) == {
        "a.txt": "caption of a.jpg", "b.txt": "b.txt", "c.jpg.txt": "caption of c.jpg",
        "c.png.txt": "caption of c.png",
    }  # fmt: skip
    done = run("caption", ".", "-o", "txt", "--text-extension", ".caption", url=url, cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "a.caption").read_text() == "caption of a.jpg\n"
    assert (tmp_path / "c.png.caption").read_text() == "caption of c.png\n"


def test_the_summary_tells_failures_findings_and_tokens(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    value = own_answers.caption_answer("red red red")
    value["data"][0]["guard"] = {"passed": False, "findings": ["loop"]}
    api.fault = lambda content, _: (
        JSONResponse(value) if content == "a.jpg" else answer("") if content == "b.jpg" else None
    )
    done = run("caption", ".", "-o", "o.jsonl", "--guard", url=url, cwd=tmp_path)
    assert b"2 captioned; 1 failed (reasons in o.jsonl)" in done.stderr
    assert b"6 tokens \xc2\xb7 failed: 1 empty_caption \xc2\xb7 guard found: 1 loop" in done.stderr


def test_equal_files_are_captioned_once_and_written_for_each(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, *(f"in/{n}.jpg" for n in range(6)), data=b"same")
    write(tmp_path, *(f"in/bad{n}.jpg" for n in range(2)), data=b"bad")
    write(tmp_path, "in/other.jpg", data=b"other")
    api.delay_s = 0.3
    api.fault = lambda content, n: failure(400, "invalid_image", "no") if content == "bad" else None
    done = run("caption", "in", "-o", "o.jsonl", "--dedupe", url=url, cwd=tmp_path)
    assert api.seen == {"same": 1, "bad": 2, "other": 1}
    assert b"7 captioned; 2 failed (reasons in o.jsonl); 5 of them the same as another" in done.stderr
    found = {row["file"]: row.get("caption") for row in rows(tmp_path / "o.jsonl")}
    assert found["in/0.jpg"] == found["in/5.jpg"] == "caption of same"
    assert len(found) == 9


def test_equal_files_with_words_of_their_own_have_captions_of_their_own(
    api: FakeApi, url: str, tmp_path: Path
) -> None:
    write(tmp_path, "one/a.jpg", "two/a.jpg", data=b"same")
    for words in (("--prepend", "{folder} "), ("--prompt", "In {folder}:")):
        done = run("caption", ".", "--dedupe", *words, url=url, cwd=tmp_path)
        assert set(printed(done)) == {"one/a.jpg", "two/a.jpg"}
        if "--prepend" in words:
            assert printed(done) == {"one/a.jpg": "one caption of same", "two/a.jpg": "two caption of same"}
    assert {form.get("prompt") for form in api.forms} == {None, "In one:", "In two:"}


def test_metadata_jsonl_is_huggingfaces(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "in/a.jpg", "in/sub/b.jpg")
    for _ in range(2):
        assert run("caption", "in", "-o", "in/metadata.jsonl", url=url, cwd=tmp_path).returncode == 0
    found = {row["file_name"]: row["caption"] for row in rows(tmp_path / "in/metadata.jsonl")}
    assert found == {"a.jpg": "caption of in/a.jpg", "sub/b.jpg": "caption of in/sub/b.jpg"}
    assert api.seen.total() == 2


def test_prompts_and_trigger_words_have_an_images_own_words(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "10_sks/cat 1.jpg", "10_sks/dog.jpg")
    (tmp_path / "10_sks/cat 1.tags").write_text("cat, {name}, sofa\n")
    done = run("caption", "10_sks", "--prompt", "{name} {x} with: {text}", "--context-extension", ".tags",
               "--prepend", "{folder}: ", "--concurrency", "1", url=url, cwd=tmp_path)  # fmt: skip
    assert [form["prompt"] for form in api.forms] == ["cat 1 {x} with: cat, {name}, sofa", "dog {x} with: "]
    assert printed(done)["10_sks/dog.jpg"] == "10_sks: caption of 10_sks/dog.jpg"


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("append", ["1girl, hat, caption of a.jpg", "A hat. caption of b.jpg", "caption of c.jpg"]),
        ("prepend", ["caption of a.jpg, 1girl, hat", "caption of b.jpg, A hat.", "caption of c.jpg"]),
    ],
)
def test_captions_are_added_to_texts_once(
    api: FakeApi, url: str, tmp_path: Path, how: str, expected: list[str]
) -> None:
    write(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    (tmp_path / "a.txt").write_text("1girl, hat\n")
    (tmp_path / "b.txt").write_text("A hat.")
    for _ in range(2):
        assert run("caption", ".", "-o", "txt", "--existing", how, url=url, cwd=tmp_path).returncode == 0
        assert list(texts(tmp_path).values()) == expected
    assert set(api.seen.values()) == {1}
    (tmp_path / "b.txt").write_text("A hat.")  # as after a kill between the row and the text
    assert run("caption", ".", "-o", "txt", "--existing", how, url=url, cwd=tmp_path).returncode == 0
    assert list(texts(tmp_path).values()) == expected
    refused = run("caption", ".", "-o", "o.jsonl", "--existing", how, url=url, cwd=tmp_path)
    assert (refused.returncode, b"--existing adds to text files" in refused.stderr) == (2, True)


def test_any_field_of_the_api_can_be_asked_for(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.jpg")
    asked = ("caption", ".", "-o", "o.jsonl", "--concurrency", "1", "--field", "top_p=0.9", "--field", "stop=END")
    for _ in range(2):
        assert run(*asked, url=url, cwd=tmp_path).returncode == 0
    own = {"top_p": "0.9", "stop": "END"}
    assert api.forms == [own, own | {"model": "m"}]  # the model is the first answer's from then on
    api.fault = lambda *_: failure(400, "invalid_request", "top_q: unknown field", param="top_q")
    unknown = run("caption", ".", "-o", "o.jsonl", "--field", "top_q=1", url=url, cwd=tmp_path)
    assert (unknown.returncode, b"top_q: unknown field" in unknown.stderr) == (2, True)
    wrong = run("caption", ".", "--field", "max_tokens=3", url=url, cwd=tmp_path)
    assert (wrong.returncode, b"it is --max-tokens" in wrong.stderr) == (2, True)


def test_only_the_failed_ones_are_tried_again(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "b.jpg")
    api.fault = lambda content, n: failure(400, "invalid_image", "no") if content == "b.jpg" and n == 1 else None
    run("caption", ".", "-o", "o.jsonl", url=url, cwd=tmp_path)
    write(tmp_path, "c.jpg")
    done = run("caption", ".", "-o", "o.jsonl", "--only-failed", url=url, cwd=tmp_path)
    assert b"1 captioned; 1 done before; 1 new ones left" in done.stderr
    assert api.seen == {"a.jpg": 1, "b.jpg": 2}


def test_texts_go_to_a_folder_of_their_own(api: FakeApi, url: str, tmp_path: Path) -> None:
    write(tmp_path, "in/a.jpg", "in/a.png", "in/sub/b.jpg")
    for _ in range(2):
        done = run("caption", "in", "-o", "txt", "--texts-in", "out/texts", url=url, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert texts(tmp_path / "out/texts") == {
        "a.jpg.txt": "caption of in/a.jpg", "a.png.txt": "caption of in/a.png",
        "sub/b.txt": "caption of in/sub/b.jpg",
    }  # fmt: skip
    assert set(api.seen.values()) == {1}
    assert sorted(path.name for path in (tmp_path / "in").rglob("*") if path.is_file()) == ["a.jpg", "a.png", "b.jpg"]
    (tmp_path / "out/texts/sub/b.txt").write_text("by hand")
    assert run("gallery", "out/texts", url=url, cwd=tmp_path).returncode == 0
    assert "by hand" in (tmp_path / "out/texts/gallery.html").read_text()
    (tmp_path / "file").write_text("")
    refused = run("caption", "in", "-o", "txt", "--texts-in", "file/x", url=url, cwd=tmp_path)
    assert (refused.returncode, b"can't be made for its texts: Not a directory" in refused.stderr) == (2, True)
    assert run("caption", "in", "-o", "o.jsonl", "--texts-in", "x", url=url, cwd=tmp_path).returncode == 2

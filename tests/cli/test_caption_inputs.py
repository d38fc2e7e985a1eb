"""Where the images of `serve-app caption` come from: lists, stores, archives, tars, tables and datasets."""

import csv
import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import webdataset

from tests.cli_fake import EXPECTED, NUM_IMAGES, FakeApi, run

pytestmark = pytest.mark.engine

NUMBERS = range(NUM_IMAGES)


def tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))


def caption(url: str, folder: Path, *arguments: str, returncode: int = 0) -> list[dict[str, Any]]:
    """The rows of a run, each twice asked for: the second run finds all of them done."""
    done = run("caption", *arguments, "-o", "o.jsonl", url=url, cwd=folder)
    assert done.returncode == returncode, done.stderr
    text = (folder / "o.jsonl").read_text()
    again = run("caption", *arguments, "-o", "o.jsonl", url=url, cwd=folder)
    assert again.returncode == returncode
    assert b"0 captioned" in again.stderr
    assert (folder / "o.jsonl").read_text() == text
    return [json.loads(line) for line in text.splitlines()]


def counted(rows: list[dict[str, Any]]) -> Counter[str]:
    return Counter(row["caption"] for row in rows if "caption" in row)


CAPTIONS = Counter(caption for _, caption in EXPECTED.elements())


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
def test_tars_of_samples(api: FakeApi, url: str, folder: Path, ending: str) -> None:
    for first in (0, 30):
        members = {f"./sub/{index:03}.jpg": f"p{index}".encode() for index in range(first, first + 30)}
        tar(folder / f"s-{first:03}{ending}", members)
    rows = caption(url, folder, f"s-*{ending}")
    assert counted(rows) == CAPTIONS
    assert f"s-030{ending}/sub/031.jpg" in {row["file"] for row in rows}
    spelled = run("caption", "s-{000..030..30}" + ending, url=url, cwd=folder)
    assert len(spelled.stdout.splitlines()) == NUM_IMAGES


def test_webdatasets_own_writer_and_the_text_of_a_sample(api: FakeApi, url: str, folder: Path) -> None:
    with webdataset.TarWriter(str(folder / "w.tar")) as writer:
        for index in range(3):
            writer.write(
                {"__key__": f"k{index}", "jpg": f"p{index}".encode(), "tags": f"tag{index}", "json": {"a": 1}}
            )
        writer.write({"__key__": "k9", "png": b"p9"})
    prompted = ("--prompt", "It has {tags}.", "--context-extension", ".tags")
    assert counted(caption(url, folder, "w.tar", *prompted)) == Counter(f"caption of p{n}" for n in (0, 1, 2, 9))
    assert Counter(form["prompt"] for form in api.forms) == Counter(
        ["It has tag0.", "It has tag1.", "It has tag2.", "It has ."]
    )


def test_hostile_and_broken_tars(api: FakeApi, url: str, folder: Path) -> None:
    tar(
        folder / "t.tar",
        {"../../up.jpg": b"p1", "/root.png": b"p2", "no": b"p3", "dots.a.b.jpg": b"p4", ".x.jpg": b"p5"},
    )
    assert {row["file"] for row in caption(url, folder, "t.tar")} == {
        "t.tar/up.jpg", "t.tar/root.png", "t.tar/dots.a.b.jpg", "t.tar/.x.jpg",
    }  # fmt: skip
    (folder / "o.jsonl").unlink()
    tar(folder / "cut.tar", {f"{index}.jpg": b"p%d" % index for index in range(20)})
    data = (folder / "cut.tar").read_bytes()
    (folder / "cut.tar").write_bytes(data[: 10 * 1024 + 600])
    rows = caption(url, folder, "cut.tar", returncode=1)
    assert len(counted(rows)) == 10
    (error,) = [row["error"] for row in rows if "error" in row]
    assert error["code"] == "unreadable_shard"
    (folder / "o.jsonl").unlink()
    (folder / "no.tar").write_bytes(b"this is no tar at all" * 100)
    assert [row["error"]["code"] for row in caption(url, folder, "no.tar", returncode=1)] == ["unreadable_shard"]


@pytest.mark.parametrize(
    ("column", "arguments"),
    [
        ("image", ()),
        ("jpg", ()),
        ("thumb", ("--image-column", "thumb")),
    ],
)
def test_parquet(api: FakeApi, url: str, folder: Path, column: str, arguments: tuple[str, ...]) -> None:
    cells: list[Any] = [f"p{index}".encode() for index in NUMBERS]
    if column == "image":  # as `datasets` writes it
        cells = [{"bytes": cell, "path": None} for cell in cells]
    table = pa.table({"id": list(NUMBERS), column: cells, "tags": [f"tag{index}" for index in NUMBERS]})
    pyarrow.parquet.write_table(table, folder / "x.parquet", row_group_size=7)
    prompted = ("--prompt", "{tags}", "--context-extension", "tags")
    rows = caption(url, folder, "x.parquet", *arguments, *prompted)
    assert counted(rows) == CAPTIONS
    by_file = {row["file"]: row["caption"] for row in rows}
    assert by_file["x.parquet/000000031"] == "caption of p31"
    assert {form["prompt"] for form in api.forms} == {f"tag{index}" for index in NUMBERS}


def test_parquet_of_addresses_and_of_nothing(api: FakeApi, url: str, folder: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"url": ["http://h/a.jpg", None]}), folder / "u.parquet")
    rows = caption(url, folder, "u.parquet", returncode=1)
    assert counted(rows) == Counter(["caption of http://h/a.jpg"])
    assert [row["error"]["code"] for row in rows if "error" in row] == ["no_image"]
    pyarrow.parquet.write_table(pa.table({"a": [1]}), folder / "a.parquet")
    refused = run("caption", "a.parquet", url=url, cwd=folder)
    assert refused.returncode == 2
    assert b"--image-column; it has a" in refused.stderr
    (folder / "no.parquet").write_bytes(b"PAR1 no table")
    assert run("caption", "no.parquet", url=url, cwd=folder).returncode == 1


def test_datasets_on_disk(api: FakeApi, url: str, folder: Path) -> None:
    columns = {"image": [{"bytes": f"p{index}".encode(), "path": None} for index in NUMBERS]}
    features = datasets.Features({"image": datasets.Image()})
    whole = datasets.Dataset.from_dict(columns, features=features)
    datasets.disable_progress_bars()
    parts = datasets.DatasetDict({"train": whole.select(range(50)), "test": whole.select(range(50, 60))})
    parts.save_to_disk(str(folder / "saved"))
    assert counted(caption(url, folder, "saved")) == CAPTIONS
    (folder / "o.jsonl").unlink()
    rows = caption(url, folder, "--dataset", "saved", "--split", "test")
    assert {row["file"] for row in rows} == {f"saved/test/{index:09}" for index in range(10)}
    (folder / "o.jsonl").unlink()
    # An imagefolder's images are files, and their rows are the same as those of the folder itself.
    rows = caption(url, folder, "--dataset", "in")
    assert Counter((row["file"], row["caption"]) for row in rows) == EXPECTED
    for arguments, sentence in (
        (("--dataset", "saved", "--split", "dev"), b"the dataset has test, train"),
        (("--dataset", "nowhere/at/all"), b"--dataset nowhere/at/all can't be read"),
        (("--dataset", "saved", "--image-column", "photo"), b"it has image"),
    ):
        refused = run("caption", *arguments, url=url, cwd=folder, HF_HUB_OFFLINE="1")
        assert refused.returncode == 2, refused.stderr
        assert sentence in refused.stderr
        assert b"Traceback" not in refused.stderr


def test_stores(api: FakeApi, url: str, folder: Path) -> None:
    """Object stores have their own libraries; a zip and this machine's files go the same way by fsspec."""
    (folder / "in/.hidden.jpg").write_text("no")
    (folder / "in/@eaDir").mkdir()
    (folder / "in/@eaDir/000.jpg").write_text("no")
    (folder / "in/notes.txt").write_text("no")
    (folder / "in/x.tags").write_text("no")
    rows = caption(url, folder, f"file://{folder}/in")
    assert counted(rows) == CAPTIONS
    assert rows[0]["file"].startswith("file:///")
    (folder / "o.jsonl").unlink()
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        for index in NUMBERS:
            archive.writestr(f"a/{index % 7}/{index}.jpg", f"p{index}")
            archive.writestr(f"a/{index % 7}/{index}.tags", f"tag{index}")
    prompted = ("--prompt", "{tags}", "--context-extension", ".tags")
    assert counted(caption(url, folder, "zip://::z.zip", *prompted)) == CAPTIONS
    assert {form["prompt"] for form in api.forms if "prompt" in form} == {f"tag{index}" for index in NUMBERS}
    flat = run("caption", "zip://a/3/*.jpg::z.zip", url=url, cwd=folder)
    assert len(flat.stdout.splitlines()) == 9
    tar(folder / "t.tar", {"k.jpg": b"p1"})
    one = run("caption", f"file://{folder}/t.tar", url=url, cwd=folder)
    assert b"caption of p1" in one.stdout
    for address, sentence in (
        ("s3://bucket/x", b"install fsspec's library"),
        ("nonsense://x", b"install fsspec's library"),
        ("zip://a/9::z.zip", b"No image, folder or pattern matches"),
        ("zip://a::gone.zip", b"gone.zip"),
    ):
        refused = run("caption", address, url=url, cwd=folder)
        assert refused.returncode == 2, refused.stderr
        assert sentence in refused.stderr
        assert b"Traceback" not in refused.stderr


def test_lists(api: FakeApi, url: str, folder: Path) -> None:
    (folder / "lists").mkdir()
    names = [f"../in/{index:03}.jpg" for index in NUMBERS]
    with open(folder / "lists/l.csv", "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([["n", "file_name"], *([index, name] for index, name in enumerate(names))])
    (folder / "lists/l.jsonl").write_text("".join(json.dumps({"path": name, "x": 1}) + "\n" for name in names))
    (folder / "lists/l.txt").write_text("".join(f"in/{index:03}.jpg\r\n" for index in NUMBERS))
    for name in ("l.csv", "l.jsonl", "l.txt"):
        rows = caption(url, folder, "--files-from", f"lists/{name}")
        assert Counter((row["file"], row["caption"]) for row in rows) == EXPECTED
        (folder / "o.jsonl").unlink()
    (folder / "bad.csv").write_text("a,b\n1,2\n")
    (folder / "bad.jsonl").write_text('{"path": "in/000.jpg"}\n{"a": 1}\n')
    for name, sentence in (("bad.csv", b"has no column named file or"), ("bad.jsonl", b"bad.jsonl, line 2")):
        refused = run("caption", "--files-from", name, url=url, cwd=folder)
        assert refused.returncode == 2
        assert sentence in refused.stderr


def test_our_own_rows_are_a_list_too(api: FakeApi, url: str, folder: Path) -> None:
    assert run("caption", "in", "-o", "a.jsonl", url=url, cwd=folder).returncode == 0
    rows = caption(url, folder, "--files-from", "a.jsonl", "--style", "tags")
    assert Counter((row["file"], row["caption"]) for row in rows) == EXPECTED


def test_texts_of_a_tars_images_go_to_a_folder(api: FakeApi, url: str, folder: Path) -> None:
    tar(folder / "t.tar", {f"{index:03}.jpg": f"p{index}".encode() for index in NUMBERS})
    refused = run("caption", "t.tar", "-o", "txt", url=url, cwd=folder)
    assert refused.returncode == 2
    assert b"--texts-in FOLDER" in refused.stderr
    assert run("caption", "t.tar", "-o", "txt", "--texts-in", "texts", url=url, cwd=folder).returncode == 0
    texts = {path.stem: path.read_text().strip() for path in (folder / "texts/t.tar").glob("*.txt")}
    assert texts == {f"{index:03}": f"caption of p{index}" for index in NUMBERS}


def test_what_comes_twice_is_captioned_once(api: FakeApi, url: str, folder: Path) -> None:
    with tarfile.open(folder / "t.tar", "w") as file:
        for _ in range(2):
            member = tarfile.TarInfo("a.jpg")
            member.size = 2
            file.addfile(member, io.BytesIO(b"p1"))
    assert len(caption(url, folder, "t.tar")) == 1
    (folder / "o.jsonl").unlink()
    rows = caption(url, folder, "in", "--dataset", "in")
    assert Counter((row["file"], row["caption"]) for row in rows) == EXPECTED


def test_shards_in_a_folder_are_named(api: FakeApi, url: str, folder: Path) -> None:
    tar(folder / "in/t.tar", {"a.jpg": b"p1"})
    done = run("caption", "in", url=url, cwd=folder)
    assert len(done.stdout.splitlines()) == NUM_IMAGES
    assert b"1 tars or tables not opened: name them" in done.stderr

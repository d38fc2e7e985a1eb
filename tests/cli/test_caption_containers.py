"""Outputs of `serve-app caption` that hold many captions in a library's format: each read back by that library."""

import gc
import json
import os
import signal
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
import webdataset

from tests.cli_fake import EXPECTED, NUM_IMAGES, FakeApi, failure, run, start, wait_for

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # webdataset leaves them to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TARS, TABLE, DATASET = "tars/t-%03d.tar", "o.parquet", "dataset:ds"
OUTPUTS = [TARS, "one.tar", TABLE, DATASET]


@pytest.fixture(autouse=True)
def quiet_libraries() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    gc.collect()  # while the warnings are ignored


def read(folder: Path, output: str) -> Iterator[tuple[str, str, bytes | None]]:
    """Each file, its caption and, where the output has them, the bytes of the image, as the library reads them."""
    if output == TABLE:
        for row in pyarrow.parquet.read_table(folder / output).to_pylist():
            yield row["file"], row["caption"], None
    elif output == DATASET:
        loaded = datasets.load_dataset(str(folder / "ds"), split="train", cache_dir=str(folder / "cache"))
        for row in loaded.cast_column("image", datasets.Image(decode=False)):
            yield row["file"].removeprefix("../"), row["caption"], row["image"]["bytes"]
    else:
        shards = sorted(folder.glob(output.replace("%03d", "*")))
        for sample in webdataset.WebDataset([str(path) for path in shards], shardshuffle=False):
            row = json.loads(sample["json"])
            assert sample["txt"].decode() == row["caption"]
            yield row["file"].removeprefix("../"), row["caption"], sample["jpg"]


def captions(folder: Path, output: str) -> Counter[tuple[str, str]]:
    """How often each file and caption stands there. The caption is of the very image beside it."""
    counted: Counter[tuple[str, str]] = Counter()
    for file, caption, data in read(folder, output):
        assert data is None or caption == f"caption of {data.decode()}"
        counted[file, caption] += 1
    return counted


@pytest.mark.parametrize("output", OUTPUTS)
def test_killed_runs_lose_and_double_nothing(api: FakeApi, url: str, folder: Path, output: str) -> None:
    api.delay_s = 0.05
    arguments = ("caption", "in", "-o", output, "--concurrency", "4", *shards(output, 7))
    for num_captions in (5, 23, 41):
        process = start(*arguments, url=url, cwd=folder)
        wait_for(partial(has_seen, api, num_captions))
        process.kill()
        process.communicate()
    api.delay_s = 0.0
    done = run(*arguments, url=url, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert captions(folder, output) == EXPECTED
    asked = api.seen.total()
    again = run(*arguments, url=url, cwd=folder)
    assert b"0 captioned; 60 done before" in again.stderr
    assert (captions(folder, output), api.seen.total()) == (EXPECTED, asked)
    if output == TARS:
        assert len(list(folder.glob("tars/*.tar"))) == -(-NUM_IMAGES // 7)
    if output == DATASET:
        assert not list(folder.glob("ds/.serve-app/*.tar"))
    assert not (folder / "o.parquet.rows.jsonl").exists()


def has_seen(api: FakeApi, number: int) -> bool:
    return api.seen.total() >= number


def shards(output: str, number: int) -> tuple[str, ...]:
    return ("--shard-images", str(number)) if output in (TARS, DATASET) else ()


@pytest.mark.parametrize("output", OUTPUTS)
def test_ctrl_c_and_failures_and_a_later_run_end_whole(api: FakeApi, url: str, folder: Path, output: str) -> None:
    broken = {"p3", "p50"}
    api.fault = lambda content, _: (
        failure(400, "invalid_image", "broken: send another") if content in broken else None
    )
    api.delay_s = 0.1
    arguments = ("caption", "in", "-o", output, "--concurrency", "4", *shards(output, 20))
    process = start(*arguments, url=url, cwd=folder)
    wait_for(lambda: api.seen.total() >= 20)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    begun = Counter({pair: number for pair, number in captions(folder, output).items() if pair[1]})
    assert begun
    assert begun <= EXPECTED
    api.delay_s = 0.0
    assert run(*arguments, url=url, cwd=folder).returncode == 1
    broken.clear()
    assert run(*arguments, "--only-failed", url=url, cwd=folder).returncode == 0
    assert captions(folder, output) == EXPECTED


@pytest.mark.parametrize("output", OUTPUTS)
def test_overwrite_begins_anew(api: FakeApi, url: str, folder: Path, output: str) -> None:
    first = ("caption", "in", "-o", output, *shards(output, 20))
    assert run(*first, url=url, cwd=folder).returncode == 0
    again = run(*first, "--overwrite", "--prepend", "sks, ", "--limit", "5", url=url, cwd=folder)
    assert again.returncode == 0, again.stderr
    texts = [caption for _, caption, _ in read(folder, output)]
    assert len(texts) == 5
    assert all(text.startswith("sks, ") for text in texts)


def test_tars_hold_an_image_once(api: FakeApi, url: str, folder: Path) -> None:
    assert run("caption", "in", "-o", TARS, url=url, cwd=folder).returncode == 0
    other = run("caption", "in", "-o", TARS, "--style", "tags", url=url, cwd=folder)
    assert other.returncode == 2
    assert b"tars hold an image once" in other.stderr
    (folder / "tars/t-000.tar").rename(folder / "away.tar")
    gone = run("caption", "in", "-o", TARS, url=url, cwd=folder)
    assert gone.returncode == 2
    assert b"t-000.tar, which holds captions" in gone.stderr
    (folder / "away.tar").rename(folder / "tars/t-000.tar")
    assert run("caption", "in", "-o", TARS, url=url, cwd=folder).returncode == 0


def test_bytes_that_no_row_speaks_of_are_cut_off(api: FakeApi, url: str, folder: Path) -> None:
    """A power cut may leave a row without its sample, and a kill a sample without its row."""
    limited = ("caption", "in", "-o", TARS, "--limit", "10")
    assert run(*limited, url=url, cwd=folder).returncode == 0
    tar, ledger = folder / "tars/t-000.tar", folder / "tars/t.tar.rows.jsonl"
    ends = [json.loads(line)["end"] for line in ledger.read_text().splitlines()]
    os.truncate(tar, ends[6] + 100)  # the last three rows' samples are gone
    assert run("caption", "in", "-o", TARS, url=url, cwd=folder).returncode == 0
    assert captions(folder, TARS) == EXPECTED
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:-1]))  # a sample without its row
    assert run("caption", "in", "-o", TARS, url=url, cwd=folder).returncode == 0
    assert captions(folder, TARS) == EXPECTED


def test_a_full_disk_ends_the_run_and_loses_nothing(api: FakeApi, url: str, folder: Path) -> None:
    for output, num_bytes in ((TARS, 20_000), (DATASET, 20_000), (TABLE, 8000), ("one.tar", 18_432 + 100)):
        arguments = ("caption", "in", "-o", output)
        limited = start_with_file_limit(arguments, url, folder, num_bytes)
        assert limited.returncode == 1, limited.stderr
        assert b"can't be written" in limited.stderr
        assert b"Traceback" not in limited.stderr
        done = run(*arguments, url=url, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert captions(folder, output) == EXPECTED


def start_with_file_limit(arguments: tuple[str, ...], url: str, cwd: Path, num_bytes: int) -> Any:
    """The command where no file may grow above so many bytes, which is what a full disk looks like to it."""
    import resource
    import subprocess

    from tests.cli_fake import command

    words, environment = command(*arguments, url=url)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))

    return subprocess.run(
        words, env=environment, cwd=cwd, capture_output=True, timeout=60, check=False, preexec_fn=limit
    )


def test_outputs_that_are_not_ours_are_left_alone(api: FakeApi, url: str, folder: Path) -> None:
    import pyarrow as pa

    pyarrow.parquet.write_table(pa.table({"a": [1]}), folder / "theirs.parquet")
    (folder / "torn.parquet").write_bytes(b"PAR1 and no more")
    for name, sentence in (("theirs.parquet", b"something else than captions"), ("torn.parquet", b"as Parquet")):
        before = (folder / name).read_bytes()
        refused = run("caption", "in", "-o", name, url=url, cwd=folder)
        assert refused.returncode == 2
        assert sentence in refused.stderr
        assert (folder / name).read_bytes() == before
    assert api.seen.total() == 0


def test_two_runs_never_write_to_one_output(api: FakeApi, url: str, folder: Path) -> None:
    api.delay_s = 30
    for output in OUTPUTS:
        api.seen.clear()
        process = start("caption", "in", "-o", output, url=url, cwd=folder)
        wait_for(lambda: api.seen.total() > 0)
        other = run("caption", "in", "-o", output, url=url, cwd=folder)
        assert other.returncode == 2
        assert b"another run is writing" in other.stderr
        process.kill()
        process.communicate()


def test_names_of_any_bytes_come_back(api: FakeApi, url: str, folder: Path) -> None:
    odd = os.fsencode(folder / "in") + b"/\xff\xfe odd.jpg"
    with open(odd, "wb") as file:
        file.write(b"odd")
    for output in (TABLE, TARS):
        for _ in range(2):
            done = run("caption", "in", "-o", output, url=url, cwd=folder)
            assert done.returncode == 0, done.stderr
        assert sum(caption == "caption of odd" for _, caption, _ in read(folder, output)) == 1
    assert api.seen["odd"] == 2


def test_metadata_jsonl_is_an_imagefolder(api: FakeApi, url: str, folder: Path) -> None:
    assert run("caption", "in", "-o", "in/metadata.jsonl", url=url, cwd=folder).returncode == 0
    loaded = datasets.load_dataset(str(folder / "in"), split="train", cache_dir=str(folder / "cache"))
    rows = loaded.cast_column("image", datasets.Image(decode=False))
    assert len(rows) == NUM_IMAGES
    for row in rows:
        path = row["image"]["path"] or ""
        data = row["image"]["bytes"] or Path(path).read_bytes()
        assert row["caption"] == f"caption of {data.decode()}"


def test_a_tar_is_plain_and_ends_as_tars_do(api: FakeApi, url: str, folder: Path) -> None:
    assert run("caption", "in", "-o", "one.tar", "--limit", "3", url=url, cwd=folder).returncode == 0
    with tarfile.open(folder / "one.tar") as tar:
        names = tar.getnames()
    keys = [[f"{key:09}.jpg", f"{key:09}.txt", f"{key:09}.json"] for key in range(3)]
    assert names == list(chain(*keys))
    assert (folder / "one.tar").read_bytes().endswith(bytes(1024))


def test_an_address_has_no_bytes_for_a_tar(api: FakeApi, url: str, folder: Path) -> None:
    done = run("caption", "http://127.0.0.1:9/a.jpg", "-o", "one.tar", url=url, cwd=folder)
    assert done.returncode == 1
    row = json.loads((folder / "one.tar.rows.jsonl").read_text())
    assert row["error"]["code"] == "no_bytes"

"""Kills `serve-app caption`, replicas and ingresses at random while a folder is captioned, and counts every image.

`python -m benchmarks.captioning_kills` takes an hour: 34 kills for each way of writing captions, and then on until
all images of the folder are done. Each image has a size of its own, and the scripted engine's caption tells it,
so a caption that went to another image is seen.
"""

import argparse
import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import psutil
import pyarrow.parquet
import webdataset
from PIL import Image

from benchmarks.soak_processes import processes, wait_until_replaced
from tests.service import RunningService, serving

OUTPUTS = ("captions.jsonl", "captions.csv", "txt", "captions.parquet", "t-%03d.tar", "dataset:set")
TOKENS_PER_S = 2.0  # half a second for a caption, so that a run outlasts its kills
VICTIMS = ("cli", "cli", "script:Model", "ingress:Ingress")  # a person's Ctrl-C or a full memory is the likeliest
_WIDTHS = 75  # so many widths and heights from `_LEAST_PX` on make all sizes
_LEAST_PX = 8


def config() -> dict[str, Any]:
    """Two replicas of a scripted captioner, two ingresses."""
    args = {
        "source": "none", "engine": "scripted", "num_cpus": 0.1,
        "engine_args": {"takes_images": True, "tokens_per_s": TOKENS_PER_S},
        "autoscaling": {"min_replicas": 2, "max_replicas": 2},
    }  # fmt: skip
    names = {"name": "Ingress", "user_config": {"models": ["script"]}}
    return {
        "proxy_location": "HeadOnly",
        "applications": [
            {"name": "script", "import_path": "serve_app.app:build_model", "route_prefix": None, "args": args},
            {
                "name": "ingress", "import_path": "serve_app.app:build_ingress", "route_prefix": "/",
                "args": {"num_cpus": 0.1, "num_replicas": 2}, "deployments": [names],
            },
            {"name": "metrics", "import_path": "serve_app.app:build_metrics", "route_prefix": "/metrics", "args": {}},
        ],
    }  # fmt: skip


def size_of(number: int) -> str:
    return f"{_LEAST_PX + number % _WIDTHS}x{_LEAST_PX + number // _WIDTHS}"


def draw(folder: Path, number: int) -> None:
    for index in range(number):
        width, height = map(int, size_of(index).split("x"))
        path = folder / f"{index % 7}" / f"{index:05}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (width, height), "red").save(path)


def captions(folder: Path, output: str) -> Iterator[tuple[str, str]]:
    """Each image's name and caption, as often as they stand there."""
    if output == "txt":
        for path in folder.rglob("*.txt"):
            yield f"{path.stem}.png", path.read_text()
        return
    if output.endswith(".parquet"):
        cells = pyarrow.parquet.read_table(folder / output, columns=["file", "caption"]).to_pylist()
        yield from ((Path(row["file"]).name, row["caption"]) for row in cells if row["caption"])
        return
    if output.endswith(".tar") or output.startswith("dataset:"):
        for name, caption, image in samples(folder, output):
            width, height = Image.open(BytesIO(image)).size
            assert caption.startswith(f"{width}x{height} "), f"{name} has another image's caption"
            yield Path(name).name, caption
        return
    with open(folder / output, newline="") as file:
        rows = csv.DictReader(file) if output.endswith("csv") else map(json.loads, file)
        yield from ((Path(row["file"]).name, row["caption"]) for row in rows if row.get("caption"))


def samples(folder: Path, output: str) -> Iterator[tuple[str, str, bytes]]:
    """Each image's name, caption and bytes, as the format's library reads them."""
    if output.startswith("dataset:"):
        with tempfile.TemporaryDirectory() as cache:
            rows = datasets.load_dataset(str(folder / "set"), split="train", cache_dir=cache)
            for row in rows.cast_column("image", datasets.Image(decode=False)):
                yield row["file"], row["caption"], row["image"]["bytes"]
        return
    shards = sorted(str(path) for path in folder.glob(output.replace("%03d", "*")))
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        yield json.loads(sample["json"])["file"], sample["txt"].decode(), sample["png"]


def run(service: RunningService, folder: Path, output: str, num_kills: int, rng: random.Random) -> dict[str, Any]:
    """Caption the folder to its end through the kills, and count what became of each image."""
    words = [sys.executable, "-m", "serve_app", "caption", ".", "--output", output, "--url", service.url,
             "--concurrency", "8", "--retry-failed", "--exclude", "set"]  # fmt: skip
    killed: Counter[str] = Counter()
    begun_s = time.monotonic()
    while True:
        process = subprocess.Popen(words, cwd=folder, stderr=subprocess.DEVNULL)
        while process.poll() is None and killed.total() < num_kills:
            time.sleep(rng.uniform(0.3, 2.5))
            victim = rng.choice(VICTIMS)
            if kill(service, process, victim):
                killed[victim] += 1
        if process.wait() == 0:
            break
    counted = Counter(captions(folder, output))
    names = Counter(name for name, _ in counted.elements())
    wrong = [name for name, caption in counted if not caption.startswith(f"{size_of(int(name[:5]))} ")]
    num_images = sum(1 for _ in folder.rglob("*.png"))
    return {
        "output": output,
        "images": num_images,
        "kills": dict(killed),
        "lost": num_images - len(names),
        "doubled": sum(number > 1 for number in names.values()),
        "mispaired": len(wrong),
        "seconds": round(time.monotonic() - begun_s),
    }


def kill(service: RunningService, cli: "subprocess.Popen[bytes]", victim: str) -> bool:
    """Whether something was killed. A replica is replaced before the next one dies."""
    if victim == "cli":
        cli.kill()
        return cli.wait() != 0
    members = processes(service).get(victim, [])
    if not members:
        return False
    before = {process.pid for process in members}
    try:
        members[0].kill()
    except psutil.NoSuchProcess:
        return False
    wait_until_replaced(service, victim, before)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=34, help="for each output")
    parser.add_argument("--outputs", default=",".join(OUTPUTS), help="with commas between")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    results = []
    with serving(config()) as service:
        for output in options.outputs.split(","):
            with tempfile.TemporaryDirectory(prefix="captions-") as name:
                draw(Path(name), options.images)
                results.append(run(service, Path(name), output, options.kills, rng))
                print(json.dumps(results[-1]), flush=True)
    return int(any(result[what] for result in results for what in ("lost", "doubled", "mispaired")))


if __name__ == "__main__":
    sys.exit(main())

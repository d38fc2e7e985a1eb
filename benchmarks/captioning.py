"""A folder captioned by `serve-app caption`, vLLM's own offline run and CaptionFlow, in turns: captions a second.

`python -m benchmarks.captioning` takes about half an hour on two cores, a minute more for each run of CaptionFlow;
`--small 1000 --large 100 --rounds 1` takes six minutes without it. Each way has the machine to itself; starting a
service or loading a model isn't counted. The share of captions that are the same as the reference's is told too.
CaptionFlow is left out where `make build/bench/captionflow/.installed` didn't install it.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import captionflow
from benchmarks.serving import engine
from benchmarks.serving.checkpoints import demo_model
from benchmarks.serving.images import NUM_IMAGES, draw_images, file_name
from benchmarks.serving.machine import machine
from benchmarks.serving.processes import ENGINE_ROLES, CpuMeter, by_role
from benchmarks.serving.service import Service
from benchmarks.serving.systems import SYSTEMS, Place, port_of
from benchmarks.serving.workloads import CAPTION_TOKENS, CAPTIONER, Size

PROMPT = "Describe this picture in one sentence."
START_TIMEOUT_S = 300.0
REFERENCE = "offline_chat"
CAPTION_FLOW = "captionflow"
WAYS = ("serve_app", "serve_app_direct", REFERENCE, "offline_script", CAPTION_FLOW)


@dataclass(frozen=True, slots=True)
class Run:
    """One way's captions of one folder. `cli_cpu_s` and `engine_cpu_s` are known for the service alone."""

    seconds: float
    captions: list[str]
    cli_cpu_s: float | None = None
    engine_cpu_s: float | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=3000, help="images of 0.3 megapixels")
    parser.add_argument("--large", type=int, default=300, help="images of 12 megapixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", default="", help="of the command line; left out: its own choice")
    parser.add_argument("--ways", default=",".join(WAYS), help="which of them, with commas between")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args()
    numbers: dict[Size, int] = {"0.3mp": options.small, "12mp": options.large}
    folders = {size: _folder(options.out, size, number) for size, number in numbers.items()}
    print(json.dumps({"machine": machine(), **vars(options)}, default=str), flush=True)
    runs: dict[tuple[Size, str], list[Run]] = {}
    ways = _installed(options.ways.split(","))
    for number in range(options.rounds):
        for name, run in _round(ways, options.concurrency, options.out):
            for size, folder in folders.items():
                done = run(folder)
                runs.setdefault((size, name), []).append(done)
                print(f"round {number + 1}: {size} {name}: {_rate(done):.1f} captions/s", flush=True)
    _tell(runs)


def _installed(ways: list[str]) -> list[str]:
    if CAPTION_FLOW not in ways or captionflow.INSTALLED.exists():
        return ways
    print("CaptionFlow is left out: make build/bench/captionflow/.installed installs it", flush=True)
    return [way for way in ways if way != CAPTION_FLOW]


def _round(ways: list[str], concurrency: str, out: Path) -> Iterator[tuple[str, Callable[[Path], Run]]]:
    lanes = {"serve_app": "", "serve_app_direct": f"/models/{CAPTIONER}"}
    if ours := [way for way in ways if way in lanes]:
        with _service(out) as (address, service):
            for way in ours:
                yield way, partial(_by_command_line, address + lanes[way], concurrency, service)
    for way in ways:
        if way.startswith("offline_"):
            yield way, partial(_offline, way.removeprefix("offline_"))
    if CAPTION_FLOW in ways:
        yield CAPTION_FLOW, partial(_captionflow, out / "captionflow-run.log")


def _folder(out: Path, size: Size, number: int) -> Path:
    """So many images, the same few in turn, each a file of its own."""
    drawn, folder = out / "images", out / f"folder-{size}-{number}"
    draw_images(drawn)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for index in range(number):
        os.link(drawn / file_name(size, index % NUM_IMAGES), folder / f"{index:06}.jpg")
    return folder.resolve()


@contextmanager
def _service(out: Path) -> Iterator[tuple[str, Service]]:
    """Our service with the demo model alone; its address."""
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))  # short: Ray puts sockets below it
    system = SYSTEMS["serve_app"]
    recipe = system.cook(Place(port_of(system.service), folder, {CAPTIONER: demo_model()}))
    service = Service("captioning", out / "captioning.log")
    try:
        service.start(recipe.commands, folder)
        address = recipe.addresses[CAPTIONER]
        _wait_until_ready(address, service)
        yield address, service
    finally:
        service.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_until_ready(address: str, service: Service) -> None:
    import httpx

    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if ended := service.ended():
            raise SystemExit(f"the service {ended}:\n{service.last_lines()}")
        try:
            if httpx.get(f"{address}/ready?all=1", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise SystemExit(f"the service isn't ready after {START_TIMEOUT_S:.0f} s:\n{service.last_lines()}")


def _by_command_line(address: str, concurrency: str, service: Service, folder: Path) -> Run:
    output = folder.with_suffix(".jsonl")
    output.unlink(missing_ok=True)
    words = [
        sys.executable, "-m", "serve_app", "caption", str(folder), "--output", str(output), "--url", address,
        "--model", CAPTIONER, "--prompt", PROMPT, "--max-tokens", str(CAPTION_TOKENS), "--temperature", "0",
        *(("--concurrency", concurrency) if concurrency else ()),
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with CpuMeter(service.roots, [service.mark]) as meter:
        begun_s = time.perf_counter()
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
        ended_s = time.perf_counter()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    spent = by_role(meter.spent(begun_s, ended_s))
    return Run(
        ended_s - begun_s,
        [row["caption"] for row in sorted(rows, key=lambda row: row["file"])],
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        sum(spent.get(role, 0.0) for role in ENGINE_ROLES),
    )


def _offline(way: str, folder: Path) -> Run:
    words = [sys.executable, "-m", "benchmarks.captioning_offline", way, str(folder), str(demo_model()), PROMPT,
             str(CAPTION_TOKENS)]  # fmt: skip
    environment = {**os.environ, **engine.ENVIRONMENT}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    # Other processes of the engine may log after the line with the captions.
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith('{"seconds"'))
    told: dict[str, Any] = json.loads(line)
    return Run(told["seconds"], [caption.strip() for caption in told["captions"]])


def _captionflow(log: Path, folder: Path) -> Run:
    return Run(*captionflow.caption(folder, demo_model(), PROMPT, CAPTION_TOKENS, log))


def _rate(run: Run) -> float:
    return len(run.captions) / run.seconds


def _tell(runs: dict[tuple[Size, str], list[Run]]) -> None:
    """A line for each way: medians, and the ratio to the reference's run of the same round."""
    for (size, name), done in runs.items():
        reference = runs.get((size, REFERENCE), done)
        ratios = sorted(_rate(run) / _rate(other) for run, other in zip(done, reference, strict=True))
        same = [
            sum(a == b for a, b in zip(run.captions, other.captions, strict=True)) / len(run.captions)
            for run, other in zip(done, reference, strict=True)
        ]
        line: dict[str, Any] = {
            "images": size,
            "way": name,
            "captions_per_s": round(statistics.median(map(_rate, done)), 2),
            "vs_offline_chat": [round(ratio, 2) for ratio in (statistics.median(ratios), ratios[0], ratios[-1])],
            "same_captions": round(min(same), 4),
        }
        if done[0].engine_cpu_s:
            shares = [(run.cli_cpu_s or 0) / (run.engine_cpu_s or 1) for run in done]
            line["cli_cpu_vs_engine_cpu"] = round(statistics.median(shares), 3)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()

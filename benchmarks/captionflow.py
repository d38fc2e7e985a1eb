"""Captions a folder with CaptionFlow, its orchestrator and one worker with vLLM inside, for `captioning.py`.

The time is the worker's, from the first image's download to the last caption, by its own log: the loading of the
model, the wait of 20 s before it believes that all is done, and the export aren't counted.
"""

import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from benchmarks.serving import engine
from benchmarks.serving.service import Command, Service
from benchmarks.serving.systems import PEERS

INSTALLED = PEERS / "captionflow" / ".installed"
PYTHON = PEERS / "captionflow" / "bin" / "python"
PORT = 18980  # and the next, from which the worker downloads the images
BATCH_SIZE = 8  # of its example configurations
RUN_TIMEOUT_S = 1800.0


def caption(folder: Path, checkpoint: Path, prompt: str, max_tokens: int, log: Path) -> tuple[float, list[str]]:
    """The seconds, and the captions in the files' order."""
    num_images = len(list(folder.iterdir()))
    place = Path(tempfile.mkdtemp(prefix="captionflow-"))
    service = Service("captionflow", log)
    try:
        service.start(_commands(_config(folder, num_images, checkpoint, prompt, max_tokens, place), place), place)
        _wait_until_done(service)
        service.stop()  # the orchestrator writes its last captions now
        return _worker_seconds(place), _captions(place, num_images)
    finally:
        service.stop()
        shutil.rmtree(place, ignore_errors=True)


def _config(
    folder: Path, num_images: int, checkpoint: Path, prompt: str, max_tokens: int, place: Path
) -> dict[str, Any]:
    """As in its `examples/orchestrator/local_image_files.yaml`, with one chunk and a buffer of one.

    With several chunks a worker may stop in the last one: it takes three answers that there is no more work for the
    end. With a larger buffer than there are chunks the orchestrator's thread that makes them never sleeps.
    """
    return {
        "host": "127.0.0.1",
        "port": PORT,
        "chunk_size": num_images,
        "min_chunk_buffer": 1,
        "chunk_buffer_multiplier": 1,
        "dataset": {
            "type": "local_filesystem",
            "processor_type": "local_filesystem",
            "dataset_path": str(folder),
            "name": "bench",
            "http_bind_address": "127.0.0.1",
            "public_address": "127.0.0.1",
            "http_port": PORT + 1,
        },
        "vllm": {
            "model": str(checkpoint),
            "dtype": engine.ENGINE_ARGS["dtype"],
            "max_model_len": engine.ENGINE_ARGS["max_model_len"],
            "batch_size": BATCH_SIZE,
            "sampling": {"temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0, "max_tokens": max_tokens},
            "inference_prompts": [prompt],
        },
        "storage": {"data_dir": str(place / "data"), "checkpoint_dir": str(place / "checkpoints")},
        "auth": {"worker_tokens": [{"token": secrets.token_hex(16), "name": "bench"}]},
    }


def _commands(config: dict[str, Any], place: Path) -> list[Command]:
    worker = {"server": f"ws://127.0.0.1:{PORT}", "token": config["auth"]["worker_tokens"][0]["token"], "vllm": True}
    (place / "orchestrator.yaml").write_text(yaml.safe_dump({"orchestrator": config}))
    (place / "worker.yaml").write_text(yaml.safe_dump({"worker": worker}))
    return [
        Command(
            _words(role, "--config", str(place / f"{role}.yaml"), *flags),
            {**engine.ENVIRONMENT, "CAPTIONFLOW_LOG_DIR": str(place / role)},
        )
        for role, flags in (("orchestrator", ("--no-ssl",)), ("worker", ("--when_finished", "shutdown")))
    ]


def _words(*words: str) -> tuple[str, ...]:
    command = Path(__file__).with_name("captionflow_command.py")
    return (str(PYTHON), str(command), json.dumps(engine.ENGINE_ARGS), *words)


def _wait_until_done(service: Service) -> None:
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while not (ended := service.ended()) and time.monotonic() < deadline:
        time.sleep(0.5)
    if ended != "ended with 0":
        raise SystemExit(f"CaptionFlow {ended or 'takes too long'}:\n{service.last_lines()}")


def _worker_seconds(place: Path) -> float:
    lines = (place / "worker" / "caption_flow.log").read_text().splitlines()
    begun = next(line for line in lines if " - Starting unit " in line)
    ended = next(line for line in reversed(lines) if " - Completed unit " in line)
    return (_moment(ended) - _moment(begun)).total_seconds()


def _moment(line: str) -> datetime:
    return datetime.strptime(line.split(" - ", 1)[0], "%Y-%m-%d %H:%M:%S,%f")


def _captions(place: Path, num_images: int) -> list[str]:
    words = _words(
        "export", "--data-dir", str(place / "data"), "--format", "jsonl", "--output", str(place / "export")
    )
    log = place / "export.log"
    with log.open("wb") as output:
        subprocess.run(
            words, check=True, stdout=output, stderr=output, env={**os.environ, "CAPTIONFLOW_LOG_DIR": str(place)}
        )
    lines = [line for file in (place / "export").glob("*.jsonl") for line in file.read_text().splitlines()]
    rows = sorted(map(json.loads, lines), key=lambda row: row["filename"])
    captions = [row["captions"][0] for row in rows if row["captions"]]
    if len(captions) != num_images:
        raise SystemExit(f"CaptionFlow exports {len(captions)} captions of {num_images} images:\n{log.read_text()}")
    return captions

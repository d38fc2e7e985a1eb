"""`vllm bench serve`, the public client, as one process for many cells: it imports once and then only measures.

Run as a program it takes a JSON line of the command's own flags on stdin and answers with a line of what each request
saw; as a module it starts that program and talks to it. Everything in between is vLLM's code.
"""

import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

from benchmarks.serving.engine import ENVIRONMENT
from benchmarks.serving.timing import Request
from benchmarks.serving.workloads import Load

NAME = "vllm bench serve"
READY = "ready\n"
_KEPT = ("start_times", "ttfts", "itls", "latencies", "output_lens", "errors")


def flags(
    load: Load, address: str, prompts: Path, tokenizer: Path, num_requests: int, rate_per_s: float | None
) -> list[str]:
    """The command's flags for a load. With a rate, requests come by a Poisson process, whoever waits."""
    arrivals = ["--max-concurrency", str(load.num_clients)]
    if rate_per_s is not None:
        arrivals = ["--request-rate", f"{rate_per_s:.4f}", "--burstiness", "1.0"]
    return [
        "--backend", "openai-chat", "--base-url", address, "--endpoint", "/v1/chat/completions",
        "--model", load.model, "--tokenizer", str(tokenizer),
        "--dataset-name", "custom", "--dataset-path", str(prompts), "--skip-chat-template", "--disable-shuffle",
        "--custom-output-len", str(load.num_tokens), "--num-prompts", str(num_requests), *arrivals,
        "--temperature", "0", "--ignore-eos", "--save-detailed", "--disable-tqdm", "--seed", "0",
    ]  # fmt: skip


class PublicClient:
    """The program, started when it is first needed and again after a cell that it didn't survive."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def run(self, given: Sequence[str], num_wanted: int, timeout_s: float) -> list[Request]:
        """What each request saw. Raises `RuntimeError` where the command fails as a whole or takes too long."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        print(json.dumps(list(given)), file=process.stdin, flush=True)
        if not select.select([process.stdout], [], [], timeout_s)[0]:
            self.stop()
            raise RuntimeError(f"{NAME} wasn't done after {timeout_s:.0f} s")
        line = process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError(f"{NAME} ended by itself: see its log")
        told = json.loads(line)
        if "failure" in told:
            raise RuntimeError(f"{NAME}: {told['failure']}")
        return requests_of(told, num_wanted)

    def start(self) -> None:
        """Ahead of the first cell, so that its imports take no processor time from it."""
        self._process = self._process or self._start()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _start(self) -> "subprocess.Popen[str]":
        """Returns when it has imported all it needs."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.serving.public_client"], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **ENVIRONMENT},
                process_group=0,
            )  # fmt: skip
        assert process.stdout is not None
        if process.stdout.readline() != READY:
            process.kill()
            raise RuntimeError(f"{NAME} can't be started: {log_end(self._log)}")
        return process


def log_end(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "its log is empty"


def requests_of(told: dict[str, Any], num_wanted: int) -> list[Request]:
    """vLLM's lists, one entry a request, as requests. It leaves no end for one that failed: its begin stands in."""
    found = []
    for begun_s, first_s, pauses, latency_s, num_tokens, error in zip(*(told[name] for name in _KEPT), strict=True):
        times = tuple(accumulate(pauses, initial=begun_s + first_s)) if first_s else ()
        found.append(Request(begun_s, times, begun_s + latency_s, num_tokens, num_wanted, error[-300:] or None))
    return found


def _answer_lines(channel: IO[str]) -> None:
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    print(READY, end="", file=channel, flush=True)
    for line in sys.stdin:
        try:
            result = main(parser.parse_args(json.loads(line)))
            told = {name: result[name] for name in _KEPT}
        except (Exception, SystemExit) as exc:  # noqa: BLE001 - a cell that fails must not end the others
            told = {"failure": f"{type(exc).__name__}: {exc}"}
        print(json.dumps(told), file=channel, flush=True)


if __name__ == "__main__":
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as lines:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what vLLM prints goes to the log
        _answer_lines(lines)

"""guidellm, a second public client, as a second opinion: one process for each cell, in an environment of its own.

It tells each request's begin, first token, last token and end, and no token's time in between. So the times between
tokens that are made of it are each request's mean.
"""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.systems import PEERS
from benchmarks.serving.timing import Request
from benchmarks.serving.workloads import Load

PROGRAM = PEERS / "guidellm" / "bin" / "guidellm"


def run_guidellm(
    load: Load, address: str, key: str | None, prompts: Sequence[str], tokenizer: Path, timeout_s: float
) -> list[Request]:
    """What each request saw. Raises `RuntimeError` where it isn't installed, fails as a whole or takes too long."""
    if not PROGRAM.exists():
        raise RuntimeError(f"guidellm isn't installed: `make bench` sets it up, see {PEERS.name}/guidellm.log")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, told = folder / "prompts.jsonl", folder / "told.json"
        rows = [{"prompt": prompt, "output_tokens_count": load.num_tokens} for prompt in prompts]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = [str(PROGRAM), "run", *flags(load, address, key, data, tokenizer, told)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment)
        except subprocess.TimeoutExpired as exc:
            raise RuntimeError(f"guidellm wasn't done after {timeout_s:.0f} s") from exc
        if done.returncode or not told.exists():
            raise RuntimeError(f"guidellm: {(done.stderr.strip() or 'it told nothing').splitlines()[-1][-300:]}")
        (benchmark,) = json.loads(told.read_text())["benchmarks"]
    return requests_of(benchmark["requests"], load.num_tokens, time.monotonic() - time.time())


def flags(load: Load, address: str, key: str | None, data: Path, tokenizer: Path, told: Path) -> list[str]:
    backend = {
        "kind": "openai_http",
        "target": address,
        "model": load.model,
        "request_format": "/v1/chat/completions",
        "extras": {"body": {"temperature": 0}},
        **({"api_key": key} if key else {}),
    }
    return [
        "--backend", json.dumps(backend),
        "--profile", f"kind=concurrent,streams={load.num_clients}",
        "--constraint", f"kind=max_requests,count={load.num_requests}",
        "--tokenizer", json.dumps({"kind": "huggingface_auto", "model": str(tokenizer)}),
        "--data", json.dumps({"kind": "json_file", "path": str(data)}),
        "--output", f"kind=json,path={told}",
        "--disable-console",
    ]  # fmt: skip


def requests_of(
    told: dict[str, list[dict[str, Any]] | None], num_wanted: int, clock_offset_s: float
) -> list[Request]:
    """Its report's requests; `clock_offset_s` takes its wall clock to the machine's monotonic one."""
    found = []
    for one in (*(told["successful"] or ()), *(told["errored"] or ()), *(told["incomplete"] or ())):
        timings = one["info"]["timings"]
        begun_s, ended_s = timings["request_start"], timings["request_end"] or timings["resolve_end"]
        num_tokens = (one["output_metrics"] or {}).get("total_tokens") or 0
        first_s, last_s = timings["first_token_iteration"], timings["last_token_iteration"]
        times: tuple[float, ...] = ()
        if first_s and num_tokens:
            mean_s = (last_s - first_s) / max(1, num_tokens - 1)
            times = tuple(clock_offset_s + first_s + number * mean_s for number in range(num_tokens))
        error = (one["info"]["error"] or "")[-300:] or None
        found.append(
            Request(clock_offset_s + begun_s, times, clock_offset_s + ended_s, num_tokens, num_wanted, error)
        )
    return found

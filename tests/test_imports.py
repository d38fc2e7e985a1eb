"""Import direction: what stands below the engines and Ray imports neither."""

import subprocess
import sys

import pytest

PURE = [
    "admission",
    "budget",
    "cancel_board",
    "config",
    "config_file",
    "errors",
    "families",
    "images",
    "key_file",
    "keys",
    "ingress",
    "messages",
    "manifest",
    "placement",
    "plan.nodes",
    "plan.verdict",
    "rates",
    "running",
    "shortage",
    "metrics.registry",
    "load_progress",
    "engines.source",
    "engines.vllm_ranks",
    "cli",
]


@pytest.mark.parametrize("module", PURE)
def test_pure_modules_import_without_ray_torch_and_vllm(module: str) -> None:
    code = (
        "import sys\n"
        "for name in ('ray', 'torch', 'vllm', 'transformers'): sys.modules[name] = None\n"
        f"import serve_app.{module}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

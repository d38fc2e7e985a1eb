"""The wheel: it builds, carries the demo model, and serves from another folder without this checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.cluster
def test_a_wheel_installed_elsewhere_starts(tmp_path: Path) -> None:
    build = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path / "dist"),
        str(ROOT),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.stat().st_size < 15_000_000
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)],
        check=True, capture_output=True,
    )  # fmt: skip
    # Run as a script of its own, far from the checkout, with the installed copy first on the path.
    check = (
        "import serve_app, tests.service as s, tests.conftest as c, tests.drawings as p\n"
        f"assert serve_app.__file__.startswith({str(site)!r}), serve_app.__file__\n"
        "from serve_app.cli.up import DEMO_CONFIG; import yaml\n"
        "with s.serving(yaml.safe_load(DEMO_CONFIG.read_text())) as service, service.client as client:\n"
        "    answer = client.post('/v1/captions', json={'image': p.b64(p.png('red', 'circle'))}).json()\n"
        "    assert p.says(answer['data'][0]['caption'], 'red', 'circle'), answer\n"
    )
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    path = os.pathsep.join([str(site), str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True, timeout=280,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

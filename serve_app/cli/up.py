"""`serve-app up`: the service on this machine, from one file, until Ctrl-C."""

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.errors import FAILED, INTERRUPTED, USAGE, CliError
from serve_app.cli.options import DEFAULT_URL
from serve_app.errors import ConfigError

DEMO_CONFIG = Path(__file__).parent.parent / "demo" / "serve_config.yaml"
DEMO_ON_VLLM = DEMO_CONFIG.with_suffix(".vllm.yaml")


class DemoEngine(StrEnum):
    TRANSFORMERS = "transformers"
    VLLM = "vllm"


NEXT_STEPS = """
Serving {models} at {url} (Ctrl-C stops it). Try:

  curl -s {url}/v1/captions -F image=@PICTURE.png
  curl -s {url}/v1/chat/completions -H 'content-type: application/json' \\
       -d '{{"messages": [{{"role": "user", "content": "Who are you?"}}]}}'
  {command} caption PICTURE.png{url_option}
  {command} chat{url_option}

Metrics: {url}/metrics/summary{dashboard}
"""


def up(
    config: Annotated[
        Path | None,
        typer.Argument(help="A Serve config file (like serve_config.yaml). Left out: the demo model."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, envvar="PORT", help="Listen here instead of the file's port."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray's address. Left out: the cluster that runs on this machine, or a new one. 'local': always new."
        ),
    ] = None,
    engine: Annotated[
        DemoEngine | None,
        typer.Option(help="What the demo model runs on; a file's models say so themselves. Default: transformers."),
    ] = None,
) -> None:
    """Serve on this machine until Ctrl-C: start Ray if none runs, deploy the file, say when it's ready.

    Example: serve-app up serve_config.yaml --port 8080
    """
    if config is not None and engine is not None:
        raise CliError(f"--engine is for the demo: set each model's engine in {config}", USAGE)
    demo = DEMO_ON_VLLM if engine is DemoEngine.VLLM else DEMO_CONFIG
    try:
        _serve_until_stopped(config or demo, port, address)
    except ConfigError as exc:
        raise CliError(str(exc), USAGE) from exc
    except KeyboardInterrupt as exc:
        raise CliError("stopped before the service was ready", INTERRUPTED) from exc


def _serve_until_stopped(path: Path, port: int | None, address: str | None) -> None:
    from serve_app.config_file import model_names, read_config_file  # imports late: `--help` stays instant

    values = read_config_file(path)
    if port is not None:
        values["http_options"] = {**(values.get("http_options") or {}), "port": port}
    set_ray_defaults()
    from serve_app.service import running

    for number in (signal.SIGINT, signal.SIGTERM):  # both end it alike, also where a shell's `&` left SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    started_at = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started_at:5.1f} s] {line}", flush=True)

    say(f"starting {', '.join(model_names(values)) or 'no model'} from {path}")
    with running(values, address, say) as service:
        for name, reason in service.failures.items():
            say(f"FAILED {name}: {reason}")
        for name, reason in service.pending.items():
            say(f"PENDING {name}: it {reason}")
        absent = service.failures | service.pending
        models = [name for name in model_names(values) if name not in absent]
        if absent and not models:
            raise CliError("no model could be started: see the reasons above", FAILED)
        print(_next_steps(models, service.url, service.dashboard_url), flush=True)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
        say("stopping")
    say("stopped")


def set_ray_defaults() -> None:
    """Before Ray is imported: it reads its environment then, and what is set there already stands."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 lets any other program starve the replicas
    if (Path.home() / ".ray" / "auth_token").exists():  # left by Ray's own start; a cluster closed with it wants it
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _next_steps(models: list[str], url: str, dashboard_url: str | None) -> str:
    """What to try, with the command spelled so that it works in the shell that started this."""
    beside = Path(sys.executable).parent / "serve-app"
    return NEXT_STEPS.format(
        models=", ".join(models),
        url=url,
        command="serve-app" if shutil.which("serve-app") else os.path.relpath(beside),
        url_option="" if url == DEFAULT_URL else f" --url {url}",
        dashboard=f"   Ray's dashboard: http://{dashboard_url}" if dashboard_url else "",
    )

"""`serve-app up`: the service on this machine, from one file, until Ctrl-C."""

import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from enum import StrEnum
from importlib.util import find_spec
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_app.cli.errors import FAILED, INTERRUPTED, USAGE, CliError
from serve_app.cli.options import DEFAULT_URL
from serve_app.config.serve_settings import HAPROXY_BINARY, HAPROXY_SETTINGS, SERVE_SETTINGS
from serve_app.exchange.lane_secret import SECRET_VARIABLE

if TYPE_CHECKING:
    from pydantic import BaseModel

    from serve_app.local.service import Service

DEMO_CONFIG = Path(__file__).parent.parent / "demo" / "serve_config.yaml"
DEMO_ON_VLLM = DEMO_CONFIG.with_suffix(".vllm.yaml")


class DemoEngine(StrEnum):
    TRANSFORMERS = "transformers"
    VLLM = "vllm"


NEXT_STEPS = """
Serving {models} at {url} (Ctrl-C stops it). Try:

  curl -s {url}/v1/captions{key_header} -F image=@IMAGE.png
  curl -s {url}/v1/chat/completions{key_header} -H 'content-type: application/json' \\
       -d '{{"messages": [{{"role": "user", "content": "Who are you?"}}]}}'
  {command} caption IMAGE.png{url_option}
  {command} chat{url_option}

{playground}Metrics: {url}/metrics/summary{dashboard}
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
    host: Annotated[
        str | None,
        typer.Option(help="Listen there instead of at the file's host; a name is one that the service answers to."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray's address. Left out: the cluster that runs on this machine, or a new one. 'local': always new."
        ),
    ] = None,
    no_auth: Annotated[
        bool,
        typer.Option("--no-auth", help="Let whoever reaches this machine use the service, without API keys."),
    ] = False,
    engine: Annotated[
        DemoEngine | None,
        typer.Option(help="What the demo model runs on; a file's models say so themselves. Default: transformers."),
    ] = None,
    playground: Annotated[
        bool,
        typer.Option("--playground", help="Also the page for browsers, at /playground; needs serve-app[playground]."),
    ] = False,
    haproxy: Annotated[
        bool,
        typer.Option("--haproxy", help="Behind HAProxy, as in production: for a cluster that is started here."),
    ] = False,
    drain_seconds: Annotated[
        float,
        typer.Option(min=0, help="How long running requests have to end after Ctrl-C or SIGTERM."),
    ] = 30.0,
) -> None:
    """Serve on this machine until Ctrl-C: start Ray if none runs, deploy the file, say when it's ready.

    Ctrl-C and SIGTERM let running requests end and refuse new ones; a second one ends at once.

    Example: serve-app up serve_config.yaml --port 8080
    """
    if config is not None and engine is not None:
        raise CliError(f"--engine is for the demo: set each model's engine in {config}", USAGE)
    path = config or (DEMO_ON_VLLM if engine is DemoEngine.VLLM else DEMO_CONFIG)
    listens_at = {name: value for name, value in (("port", port), ("host", host)) if value is not None}
    try:
        values = _read(path, listens_at, playground)
        _refuse_open_door(values, _wants_key(values), no_auth)
        if haproxy:
            os.environ.update(HAPROXY_SETTINGS)
        _serve_until_stopped(path, values, address, drain_seconds)
    except KeyboardInterrupt as exc:
        raise CliError("stopped before the service was ready", INTERRUPTED) from exc


def _read(path: Path, listens_at: dict[str, Any], has_playground: bool) -> dict[str, Any]:
    """The config file's values with what the command line adds to them."""
    from serve_app.config.file import read_config_file  # imports late: `--help` stays instant

    values = read_config_file(path)
    if listens_at:
        values["http_options"] = (values.get("http_options") or {}) | listens_at
    if has_playground:
        _add_playground(values)
    _allow_own_name(values)
    return values


def _serve_until_stopped(path: Path, values: dict[str, Any], address: str | None, drain_s: float) -> None:
    set_ray_defaults()
    from serve_app.config.file import model_names
    from serve_app.local.service import drain, running

    for number in (signal.SIGINT, signal.SIGTERM):  # both end it alike, also where a shell's `&` left SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    started_at = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started_at:5.1f} s] {line}", flush=True)

    say(f"starting {', '.join(model_names(values)) or 'no model'} from {path}")
    with running(values, address, say) as service:
        _say_what_runs(values, service, say)
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
        say(f"running requests have {drain_s:g} s to end, new ones are refused; Ctrl-C ends it at once")
        with suppress(KeyboardInterrupt):
            if num_left := drain(drain_s):
                say(f"{num_left} requests hadn't ended and are cut off")
        say("stopping")
    say("stopped")


def _say_what_runs(values: dict[str, Any], service: "Service", say: Callable[[str], None]) -> None:
    """Failures, and what to try next. Raises `CliError` where no model runs or the service lacks its keys."""
    from serve_app.config.file import model_names
    from serve_app.local.service import lets_anyone_in

    for name, reason in service.failures.items():
        say(f"FAILED {name}: {reason}")
    for name, reason in service.pending.items():
        say(f"PENDING {name}: it {reason}")
    absent = service.failures | service.pending
    models = [name for name in model_names(values) if name not in absent]
    if absent and not models:
        raise CliError("no model could be started: see the reasons above", FAILED)
    wants_key = _wants_key(values)
    if wants_key and lets_anyone_in(service.url):
        raise CliError(
            "the service is open to all: the Ray cluster that it joined was started without the variable that "
            "holds the keys here. Start the cluster with it, or give args: keys: file: in the config",
            FAILED,
        )
    page = _playground_url(values, service.url, absent)
    print(_next_steps(models, service.url, service.dashboard_url, page, wants_key), flush=True)


def _applications(values: dict[str, Any], config: "type[BaseModel]") -> list[dict[str, Any]]:
    """The applications whose args are a config of this class."""
    from serve_app.config.file import takes

    return [app for app in values["applications"] if takes(app, config)]


def _add_playground(values: dict[str, Any]) -> None:
    """The page, behind the same keys as the ingress; a file that has one already keeps its own."""
    from serve_app.config.applications import IngressConfig, PlaygroundConfig

    if _applications(values, PlaygroundConfig):
        return
    if find_spec("gradio") is None:
        raise CliError("--playground needs Gradio: pip install 'serve-app[playground]' (make up PLAYGROUND=1)", USAGE)
    ingress = _applications(values, IngressConfig)
    if not ingress:
        raise CliError("--playground asks models through an ingress, and the file has none: add one", USAGE)
    if any(app["name"] == "playground" or app.get("route_prefix") == "/playground" for app in values["applications"]):
        raise CliError("--playground: the file has another application of that name or prefix: rename it", USAGE)
    keys = (ingress[0].get("args") or {}).get("keys")
    page = {"name": "playground", "import_path": "serve_app.app:build_playground", "route_prefix": "/playground"}
    values["applications"] = [*values["applications"], page | {"args": {"keys": keys} if keys else {}}]


def _playground_url(values: dict[str, Any], url: str, absent: Collection[str] = ()) -> str | None:
    """Where the page is; None where there is none, or none that came up."""
    from serve_app.config.applications import PlaygroundConfig

    pages = [app for app in _applications(values, PlaygroundConfig) if app["name"] not in absent]
    return next((f"{url}{app['route_prefix']}" for app in pages if app.get("route_prefix")), None)


def _refuse_open_door(values: dict[str, Any], wants_key: bool, no_auth: bool) -> None:
    """Without keys a service listens on this machine alone, unless `--no-auth` says that this is meant."""
    host, ip = _host(values)
    if wants_key or host == "localhost" or (ip is not None and ip.is_loopback):
        return
    if not no_auth:
        raise CliError(
            f"http_options: host is {host}, so others could use this service, and it has no API keys: make one with "
            "`serve-app key`, set host: 127.0.0.1, or say --no-auth where that is meant (docs/security.md)",
            USAGE,
        )
    print(f"WARNING: --no-auth: whoever reaches {host} may use every model, and read the metrics", file=sys.stderr)


def _allow_own_name(values: dict[str, Any]) -> None:
    """Add the name that the service listens on to `allowed_hosts`, the names that it answers to."""
    from serve_app.config.applications import ModelConfig
    from serve_app.config.file import BUILDERS, takes

    host, ip = _host(values)
    if ip is not None or host == "localhost":
        return

    def allowing(http: dict[str, Any]) -> dict[str, Any]:
        return http | {"allowed_hosts": [*http.get("allowed_hosts", ()), host]}

    def changed(app: dict[str, Any]) -> dict[str, Any]:
        args = app.get("args") or {}
        if takes(app, ModelConfig):
            return app | {"args": args | {"http": allowing(args.get("http") or {})}}
        return app | {"args": allowing(args)} if app["import_path"] in BUILDERS else app

    values["applications"] = [changed(app) for app in values["applications"]]


def _host(values: dict[str, Any]) -> tuple[str, IPv4Address | IPv6Address | None]:
    """What the service listens on, and the same as an IP address where it is one."""
    host = str((values.get("http_options") or {}).get("host", "127.0.0.1"))
    try:
        return host, ip_address(host)
    except ValueError:
        return host, None


def set_ray_defaults() -> None:
    """Set variables that the environment leaves out. Call it before Ray is imported, which reads them then."""
    # Ray's niceness of 15 lets any other program starve the replicas.
    own = {"RAY_worker_niceness": "0", SECRET_VARIABLE: secrets.token_hex(32), **SERVE_SETTINGS}
    launcher = Path(sys.executable).parent / "serve-app-haproxy"
    if launcher.exists():
        own[HAPROXY_BINARY] = str(launcher)
    for name, value in own.items():
        os.environ.setdefault(name, value)
    if (Path.home() / ".ray" / "auth_token").exists():  # left by Ray's own start; a cluster closed with it wants it
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _wants_key(values: dict[str, Any]) -> bool:
    """Whether the ingress asks for an API key."""
    from serve_app.config.applications import IngressConfig

    ingresses = [IngressConfig.model_validate(app.get("args") or {}) for app in _applications(values, IngressConfig)]
    return any(config.keys.file is not None or config.keys.environment in os.environ for config in ingresses)


def _next_steps(
    models: list[str], url: str, dashboard_url: str | None, playground: str | None, wants_key: bool
) -> str:
    """What to try, with the command spelled so that it works in the shell that started this."""
    beside = Path(sys.executable).parent / "serve-app"
    return NEXT_STEPS.format(
        models=", ".join(models),
        url=url,
        key_header=' -H "authorization: Bearer $SERVE_APP_API_KEY"' if wants_key else "",
        command="serve-app" if shutil.which("serve-app") else os.path.relpath(beside),
        url_option="" if url == DEFAULT_URL else f" --url {url}",
        playground=f"Playground: {playground}\n" if playground else "",
        dashboard=f"   Ray's dashboard: http://{dashboard_url}" if dashboard_url else "",
    )

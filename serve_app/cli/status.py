"""`serve-app status`: whether the service is up, and how fast each model is, on one screen."""

import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_app.cli.errors import FAILED, ApiError, CliError, Unreachable
from serve_app.cli.options import DEFAULT_URL, ApiKey, Json, Url

if TYPE_CHECKING:
    import httpx
    from rich.console import RenderableType

REFRESH_EVERY_S = 2.0


def status(
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every two seconds until Ctrl-C.")] = False,
) -> None:
    """Show whether the service is up and ready, and each model's numbers.

    Speed, first token and failures come from the metrics sidecar; without it the rest is still shown.

    \b
    serve-app status
    serve-app status --watch
    serve-app status --json && echo ready

    Exit codes: 0 ready, 1 up but not ready, 2 the API key is wrong, 3 no service.
    """
    from serve_app.cli.client import open_client

    with open_client(url, api_key) as client:
        if watch:
            _watch(client, as_json)
            return
        seen = gather(client)
        _show(seen, as_json)
    if not seen["ready"]:
        raise typer.Exit(FAILED)


def gather(client: "httpx.Client") -> dict[str, Any]:
    """`healthy`, `ready`, `models` and `metrics`; what could not be had is None, with a sentence in `notes`.

    Raises `Unreachable`, and `ApiError` where the API key is missing or wrong.
    """
    from serve_app.cli.client import get_json

    notes: list[str] = []

    def ask(path: str) -> Any:
        try:
            return get_json(client, path)
        except CliError as error:
            if isinstance(error, Unreachable) or (isinstance(error, ApiError) and error.status == 401):
                raise
            notes.append(f"{path}: {error.message}")
            return None

    health, ready, listed = ask("/health"), ask("/ready"), ask("/v1/models")
    metrics = _metrics(client, notes)
    models = (listed or {}).get("data", [])
    if refused := (listed or {}).get("refused_config"):
        notes.append(f"The ingress keeps its last user_config, the newest is refused: {refused}")
    return {
        "healthy": health is not None, "ready": ready is not None, "models": models,
        "metrics": metrics, "notes": notes,
    }  # fmt: skip


def _metrics(client: "httpx.Client", notes: list[str]) -> Any:
    """The sidecar's summary; None where it isn't running or this key may not read it, and a note says which."""
    from serve_app.cli.client import get_json

    try:
        return get_json(client, "/metrics/summary")
    except Unreachable:
        raise
    except CliError as error:
        is_refused = isinstance(error, ApiError) and error.status in (401, 403, 429)
        absent = "nothing answers at /metrics/summary, so the metrics application isn't running"
        notes.append(f"No numbers: {error.message if is_refused else absent}")
        return None


def _show(seen: dict[str, Any], as_json: bool) -> None:
    from rich.console import Console

    if as_json:
        typer.echo(json.dumps(seen))
    else:
        Console().print(screen(seen))


def _watch(client: "httpx.Client", as_json: bool) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    try:
        with Live(console=console, auto_refresh=False, screen=console.is_terminal and not as_json) as live:
            while True:
                try:
                    seen = gather(client)
                    if as_json or not console.is_terminal:
                        _show(seen, as_json)
                    else:
                        live.update(screen(seen), refresh=True)
                except Unreachable as error:
                    live.update(Text(error.message), refresh=True)
                time.sleep(REFRESH_EVERY_S)
    except KeyboardInterrupt:
        return


def screen(seen: dict[str, Any]) -> "RenderableType":
    """A line for the service, a row for each model, and what could not be had."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from serve_app.cli.terminal import printable

    table = Table("model", "state", box=None, pad_edge=False)
    for title in ("requests", "failed", "tokens/s", "first token p50", "p99", "in flight", "queued"):
        table.add_column(title, justify="right")
    by_model = (seen["metrics"] or {}).get("models", {})
    states = {entry.get("id", ""): entry.get("state", "") for entry in seen["models"]}
    for model in [*states, *(name for name in by_model if name not in states)]:
        cells = (model, states.get(model, ""), *numbers(by_model.get(model)))
        table.add_row(*(Text(printable(str(cell))) for cell in cells))
    reasons = [f"{e.get('id')}, {e.get('state')}: {e['reason']}" for e in seen["models"] if e.get("reason")]
    health = "healthy" if seen["healthy"] else "unhealthy"
    ready = "ready" if seen["ready"] else "not ready"
    return Group(
        Text(f"{health}, {ready}\n"), table, *(Text(f"\n{printable(note)}") for note in [*reasons, *seen["notes"]])
    )


def numbers(row: dict[str, Any] | None) -> tuple[str, ...]:
    """A model's numbers as cells: over the last minute where the summary has one, a dash where nothing was seen."""
    if row is None:
        return ("–",) * 7
    first_token = row.get("time_to_first_token_seconds", {})
    lately, ever = first_token.get("last_60s", {}), first_token.get("ever", {})
    rate = row.get("tokens_per_second", {}).get("last_10s")
    return (
        f"{row.get('requests', 0):,}",
        f"{sum(row.get('failures', {}).values()):,}",
        "–" if rate is None else f"{rate:,.1f}",
        *(_duration(lately.get(name) or ever.get(name)) for name in ("p50", "p99")),
        f"{row.get('in_flight', 0):,}",
        f"{row.get('waiting', 0) + row.get('queued', 0):,}",
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"

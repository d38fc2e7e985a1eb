"""`serve-app status`: whether the service is up, and how fast each model is, on one screen."""

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_app.cli.errors import FAILED
from serve_app.cli.options import DEFAULT_URL, ApiKey, Json, Url
from serve_app.client.errors import ServiceError, Unreachable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from serve_app.client.api import ApiClient

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
    if watch:
        with suppress(KeyboardInterrupt):
            asyncio.run(_watch(url, api_key, as_json))
        return
    seen = asyncio.run(_look(url, api_key))
    _show(seen, as_json)
    if not seen["ready"]:
        raise typer.Exit(FAILED)


async def _look(url: str, api_key: str | None) -> dict[str, Any]:
    from serve_app.client.api import ApiClient

    async with ApiClient(url, api_key) as client:
        return await gather(client)


async def gather(client: "ApiClient") -> dict[str, Any]:
    """`healthy`, `ready`, `models` and `metrics`. A part that could not be had is None, with a sentence in `notes`.

    Raises `Unreachable`, and `ServiceError` where the API key is missing or wrong.
    """
    notes: list[str] = []

    async def get(path: str) -> Any:
        try:
            return await client.get(path)
        except ServiceError as error:
            if isinstance(error, Unreachable) or error.status == 401:
                raise
            notes.append(f"{path}: {error.message}")
            return None

    health, ready, listed = await get("/health"), await get("/ready"), await get("/v1/models") or {}
    metrics = await _metrics(client, notes)
    if refused := listed.get("refused_config"):
        notes.append(f"The ingress keeps its last user_config, the newest is refused: {refused}")
    return {
        "healthy": health is not None, "ready": ready is not None, "models": listed.get("data", []),
        "metrics": metrics, "notes": notes,
    }  # fmt: skip


async def _metrics(client: "ApiClient", notes: list[str]) -> Any:
    """The sidecar's summary; None where it isn't running or this key may not read it, and a note says which."""
    try:
        return await client.get("/metrics/summary")
    except Unreachable:
        raise
    except ServiceError as error:
        is_refused = error.status in (401, 403, 429)
        absent = "nothing answers at /metrics/summary, so the metrics application isn't running"
        notes.append(f"No numbers: {error.message if is_refused else absent}")
        return None


def _show(seen: dict[str, Any], as_json: bool) -> None:
    from rich.console import Console

    if as_json:
        typer.echo(json.dumps(seen))
    else:
        Console().print(screen(seen))


async def _watch(url: str, api_key: str | None, as_json: bool) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from serve_app.client.api import ApiClient

    console = Console()
    is_screen = console.is_terminal and not as_json
    async with ApiClient(url, api_key) as client:
        with Live(console=console, auto_refresh=False, screen=is_screen) as live:
            while True:
                try:
                    seen = await gather(client)
                    if is_screen:
                        live.update(screen(seen), refresh=True)
                    else:
                        _show(seen, as_json)
                except Unreachable as error:
                    live.update(Text(error.message), refresh=True)
                await asyncio.sleep(REFRESH_EVERY_S)


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

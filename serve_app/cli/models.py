"""`serve-app models`: what can be asked of the service, and what isn't ready yet."""

import asyncio
import json
from typing import Any

import typer

from serve_app.cli.options import DEFAULT_URL, ApiKey, Json, Url


def models(url: Url = DEFAULT_URL, api_key: ApiKey = None, as_json: Json = False) -> None:
    """List the models, what each can do, and its state.

    \b
    serve-app models
    serve-app models --json | jq -r '.data[].id'
    """
    from rich.console import Console

    from serve_app.client.api import ApiClient

    async def listed() -> dict[str, Any]:
        async with ApiClient(url, api_key) as client:
            return await client.get("/v1/models")

    answer = asyncio.run(listed())
    if as_json:
        typer.echo(json.dumps(answer))
    else:
        Console().print(models_table(answer.get("data", [])))


def models_table(entries: list[dict[str, Any]]) -> Any:
    """A rich table with a row for each model; a reason stands beside the state it explains."""
    from rich.table import Table
    from rich.text import Text

    from serve_app.cli.terminal import printable

    table = Table("model", "state", "tasks", "engine", "context", box=None, pad_edge=False)
    for entry in entries:
        why = entry.get("reason") or entry.get("version_note")
        state = f"{entry.get('state', '')}: {why}" if why else entry.get("state", "")
        context = f"{entry['context_length']:,}" if entry.get("context_length") else ""
        tasks = ", ".join(entry.get("tasks") or [])
        cells = (entry.get("id", ""), state, tasks, entry.get("engine") or "", context)
        table.add_row(*(Text(printable(str(cell))) for cell in cells))
    return table

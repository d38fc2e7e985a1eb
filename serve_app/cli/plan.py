"""`serve-app plan`: whether a config file can work on the cluster's nodes, before anything is deployed."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serve_app.cli.errors import FAILED
from serve_app.cli.options import Json
from serve_app.errors import ConfigError

MAX_WIDTH = 200

if TYPE_CHECKING:
    from rich.console import RenderableType

    from serve_app.placement.packing import Node
    from serve_app.plan.verdict import Plan, Row


def plan(
    config: Annotated[Path, typer.Argument(help="A Serve config file (like serve_config.yaml).")],
    nodes: Annotated[
        list[str] | None,
        typer.Option(
            help="Nodes to plan for, such as 4xCPU=16,GPU=2,gpu_memory_gib=80; repeatable; or a YAML or JSON file."
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray's address. Without it and without --nodes: the cluster found here.")
    ] = None,
    gpu_memory_gib: Annotated[
        float | None, typer.Option(min=0.1, help="Memory of each GPU, where the nodes don't say it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say whether a config file fits: on which nodes, how many replicas, which settings never take effect.

    \b
    serve-app plan serve_config.yaml --nodes 2xCPU=16,GPU=4,gpu_memory_gib=80
    serve-app plan serve_config.yaml --address 10.0.0.5:6379

    Exit codes: 0 it works, 1 something in it can't, 2 a bad file or no nodes to plan for.
    """
    from rich.console import Console

    from serve_app.config.file import read_config_file
    from serve_app.plan.verdict import make_plan

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # vLLM's arguments are checked where it is installed
    values = read_config_file(config)
    plan = make_plan(values, _nodes(nodes or [], address, gpu_memory_gib, values))
    if as_json:
        typer.echo(json.dumps(plan.as_json()))
    else:
        console = Console()
        console = console if console.is_terminal else Console(width=MAX_WIDTH)  # a file has no lines to break
        console.print(screen(plan), soft_wrap=True)
    if not plan.works:
        raise typer.Exit(FAILED)


def _nodes(
    specs: list[str], address: str | None, gpu_memory_gib: float | None, values: dict[str, Any]
) -> "list[Node]":
    """The nodes that are given, or those of the live cluster. Raises `ConfigError`, also where both are."""
    from serve_app.plan.nodes import HOW, read_nodes, with_gpu_memory

    if specs and address:
        raise ConfigError("--nodes and --address contradict each other: give one")
    if specs:
        return read_nodes(specs, gpu_memory_gib)
    from serve_app.cli.up import set_ray_defaults

    set_ray_defaults()
    from serve_app.local.service import connected
    from serve_app.placement import cluster

    try:
        with connected(address or "auto"):
            nodes = cluster.live_nodes([app["name"] for app in values["applications"]])
    except ConfigError as exc:
        raise ConfigError(f"{exc}; or say which nodes to plan for: {HOW}") from exc
    return with_gpu_memory(nodes, gpu_memory_gib)


def screen(plan: "Plan") -> "RenderableType":
    """A row for each application, then the findings, the worst first, and the verdict."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from serve_app.cli.terminal import printable

    table = Table(box=None, pad_edge=False)
    for title in ("application", "needs", "replicas", "nodes"):
        table.add_column(title, no_wrap=True)
    for title in ("requests at once", "weights", "KV cache"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in plan.rows:
        table.add_row(*(Text(printable(cell)) for cell in cells(row)))
    lines = [
        Text(f"\n{finding.severity}: {printable(finding.place)}: {printable(finding.what)}\n  {finding.fix}")
        for finding in plan.findings
    ]
    verdict = "It can't work like this."
    if plan.works:
        has_warnings = any(finding.severity == "warning" for finding in plan.findings)
        verdict = "It works, otherwise than written: heed the warnings." if has_warnings else "It works."
    return Group(table, *lines, Text(f"\n{verdict}"))


def cells(row: "Row") -> tuple[str, ...]:
    """An application's row. A dash stands where nothing applies, a question mark where a value is unknown."""
    from serve_app.placement.shortage import need_text

    application, fit = row.application, row.fit
    most = f"–{application.num_at_most}" if application.num_at_most != application.num_at_start else ""
    reach = f", {fit.num_reachable} fit" if fit.num_reachable != application.num_at_most or not fit.is_whole else ""
    nodes = ", ".join(fit.nodes[:4]) + (f" and {len(fit.nodes) - 4} more" if len(fit.nodes) > 4 else "")
    where = nodes or ("when asked" if fit.is_whole else "none")
    return (
        application.name,
        need_text(application.need).removesuffix(" on one node"),
        f"{application.num_at_start}{most}{reach}",
        where,
        f"{row.num_requests * fit.num_reachable:,}" if row.num_requests else "–",
        *_memory(row),
    )


def _memory(row: "Row") -> tuple[str, str]:
    """Weights, and the cache with the number of whole contexts in it."""
    size, memory = row.size, row.memory
    if size is None or row.application.model is None or row.application.model.engine == "scripted":
        return "–", "–"
    weights = "?" if size.weight_bytes is None else _gib(size.weight_bytes)
    if size.kv_bytes_per_token is None:
        return weights, "?"
    cache = f"{size.kv_bytes_per_token:,} B/token"
    if memory and memory.num_full_contexts is not None:
        cache += f", {memory.num_full_contexts:,} x {size.context_tokens:,} tokens"
    return weights, cache


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**27 else f"{num_bytes / 2**20:.1f} MiB"

"""The image of the core figures: where the processor time goes, and what a client sees, system beside system."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.serving.cells import Cell, measured
from benchmarks.serving.figures import FIGURES, Figure, compared
from benchmarks.serving.processes import ENGINE_ROLES
from benchmarks.serving.systems import OURS, SYSTEMS
from benchmarks.serving.table import role_us_per_token

_OUR_COLOR, _THEIR_COLOR = "#1f6fb4", "#9a9a9a"
_PANELS = (
    ("serving_cpu_per_token_vs_vllm_serve", "serving ÷ worker time, beside vllm serve's\n64 clients, less is better"),
    ("throughput_vs_vllm_serve_c64", "tokens/s ÷ vllm serve's\n64 clients, more is better"),
    ("ttft_added_ms_c1", "time to first token, ms more than vllm serve's\n1 client, less is better"),
    ("itl_p99_vs_vllm_serve_c64", "p99 between tokens ÷ vllm serve's\n64 clients, less is better"),
    ("non_streamed_requests_vs_vllm_serve_c64", "whole answers/s ÷ vllm serve's\n64 clients, more is better"),
)  # fmt: skip


def plot(cells: Sequence[Cell], path: Path, title: str) -> None:
    """Six panels as PNG; bars are medians of rounds, whiskers their least and most."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    systems = [name for name in SYSTEMS if any(cell.key.system == name for cell in measured(cells))]
    height = 2 * (1.6 + 0.34 * len(systems))
    figure, panels = pyplot.subplots(2, 3, figsize=(17, height), layout="constrained", sharey=True)
    first, *others = panels.flat
    _draw_roles(first, systems, cells)
    by_name = {one.name: one for one in FIGURES}
    for axes, (name, label) in zip(others, _PANELS, strict=True):
        _draw_figure(axes, systems, by_name[name], cells, label)
    first.set_yticks(range(len(systems)), systems)
    first.invert_yaxis()
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_roles(axes: Any, systems: Sequence[str], cells: Sequence[Cell]) -> None:
    chats = [cell for cell in cells if cell.key.workload == "chat_c64"]
    shares = {name: role_us_per_token([c for c in chats if c.key.system == name]) for name in systems}
    roles = dict.fromkeys(role for share in shares.values() for role in share if role not in ENGINE_ROLES)
    left = [0.0] * len(systems)
    for role in roles:
        widths = [shares[name].get(role, 0.0) for name in systems]
        axes.barh(range(len(systems)), widths, left=left, label=role)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_title("µs of processor time per token, by process\n64 clients, without the engine", fontsize=10)
    if roles:
        axes.legend(fontsize=7)


def _draw_figure(axes: Any, systems: Sequence[str], figure: Figure, cells: Sequence[Cell], label: str) -> None:
    found = compared(figure, cells)
    for row, name in enumerate(systems):
        spread = found.get(name)
        if spread is None:
            axes.text(0, row, " not measured", va="center", fontsize=8, color=_THEIR_COLOR)
            continue
        ends = [[spread.median - spread.least], [spread.most - spread.median]]
        color = _OUR_COLOR if name in OURS else _THEIR_COLOR
        axes.barh(row, spread.median, color=color, xerr=ends, error_kw={"elinewidth": 1, "capsize": 2})
        axes.annotate(
            f"{spread.median:.2f}", (max(spread.most, 0), row), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    axes.axvline(0 if figure.name == "ttft_added_ms_c1" else 1, color="black", linewidth=0.8, linestyle=":")
    axes.margins(x=0.14)
    axes.set_title(label, fontsize=10)

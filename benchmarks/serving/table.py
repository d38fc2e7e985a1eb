"""The tables that people read: one for each workload, one of the figures, one of where serving time goes."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import mean

from benchmarks.serving.cells import Cell, measured
from benchmarks.serving.figures import (
    MAIN_FIGURES,
    compared,
    failures,
    num_tokens,
    over_rounds,
    serving_per_worker,
    serving_us_per_token,
    statistic,
)
from benchmarks.serving.processes import ENGINE_ROLES
from benchmarks.serving.workloads import WORKLOADS

Row = Sequence[str]
NONE = "–"


def text(rows: Sequence[Row]) -> str:
    """A Markdown table whose columns line up; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(_aligned(cell, width, column) for column, (cell, width) in enumerate(_pairs(row, widths)))
        + " |"
        for row in rows
    ]
    rule = "|" + "|".join(
        "-" * (width + 2) if not column else "-" * (width + 1) + ":" for column, width in enumerate(widths)
    )
    return "\n".join([lines[0], rule + "|", *lines[1:]])


def _pairs(row: Row, widths: Sequence[int]) -> list[tuple[str, int]]:
    return list(zip(row, widths, strict=True))


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def everything(cells: Sequence[Cell]) -> str:
    parts = [f"{name}\n{text(_workload_rows(mine))}" for name in WORKLOADS if (mine := _of(cells, name))]
    if chats := _of(cells, "chat_c64"):
        by_process = text(_role_rows(chats, role_us_per_token))
        parts.append(f"µs of processor time per token by process, chat_c64, mean of rounds\n{by_process}")
        parts.append(f"% of a core at rest by process\n{text(_role_rows(chats, role_rest_percent))}")
    parts.append(
        f"beside vllm serve of the same block and round, median (least to most)\n{text(_figure_rows(cells))}"
    )
    for system, reasons in failures(cells).items():
        parts += [f"NOT MEASURED {system} ({', '.join(names)}): {reason}" for reason, names in reasons.items()]
    return "\n\n".join(parts)


def _of(cells: Iterable[Cell], workload: str) -> list[Cell]:
    return [cell for cell in cells if cell.key.workload == workload]


def _systems(cells: Iterable[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.key.system for cell in sorted(cells, key=lambda cell: cell.key.round)))


def _workload_rows(cells: Sequence[Cell]) -> list[Row]:
    head = ["system", "rounds", "client", "tokens/s", "requests/s", "first token ms", "between tokens ms",
            "end to end ms", "tokens/event", "serving µs/token", "÷ worker", "failed"]  # fmt: skip
    return [
        head,
        *(_workload_row(system, [c for c in cells if c.key.system == system]) for system in _systems(cells)),
    ]


def _workload_row(system: str, cells: Sequence[Cell]) -> Row:
    done = measured(cells)
    if not done:
        return [system, "0", *[NONE] * 9, "all"]
    return [
        system,
        str(len(done)),
        done[0].client,
        _spread(done, lambda cell: statistic(cell, "tokens_per_s"), 0),
        _spread(done, lambda cell: statistic(cell, "requests_per_s"), 1),
        *(_quantiles(done, name) for name in ("first_token_ms", "inter_token_ms", "end_to_end_ms")),
        _spread(done, lambda cell: statistic(cell, "tokens_per_event"), 2, with_ends=False),
        _spread(done, serving_us_per_token, 0),
        _spread(done, serving_per_worker, 2),
        "/".join(str(sum(cell.statistics[name] for cell in done)) for name in ("num_failed", "num_requests")),
    ]


def _spread(cells: Sequence[Cell], of: Callable[[Cell], float | None], digits: int, *, with_ends: bool = True) -> str:
    found = over_rounds(cells, of)
    if found is None:
        return NONE
    ends = f" ({found.least:.{digits}f} to {found.most:.{digits}f})" if with_ends and found.num_rounds > 1 else ""
    return f"{found.median:.{digits}f}{ends}"


def _quantiles(cells: Sequence[Cell], name: str) -> str:
    """Median, p90 and p99, each the median of its rounds."""
    found = [over_rounds(cells, partial(_statistic, name, which)) for which in ("median", "p90", "p99")]
    return " / ".join(f"{one.median:.1f}" if one else NONE for one in found) if any(found) else NONE


def _statistic(name: str, which: str, cell: Cell) -> float | None:
    return statistic(cell, name, which)


def _role_rows(cells: Sequence[Cell], of: Callable[[list[Cell]], dict[str, float]]) -> list[Row]:
    systems = [system for system in _systems(cells) if measured(c for c in cells if c.key.system == system)]
    shares = {system: of([c for c in cells if c.key.system == system]) for system in systems}
    roles = sorted(
        {role for share in shares.values() for role in share}, key=lambda role: (role in ENGINE_ROLES, role)
    )
    rows: list[Row] = [["process", *systems]]
    for role in roles:
        rows.append(
            [role, *(f"{shares[system][role]:.1f}" if role in shares[system] else NONE for system in systems)]
        )
    return rows


def role_us_per_token(cells: Iterable[Cell]) -> dict[str, float]:
    """Processor time by role, the mean of rounds; what takes less than half a microsecond is left out."""
    done = [cell for cell in measured(cells) if num_tokens(cell)]
    roles = dict.fromkeys(role for cell in done for role in cell.cpu_s)
    found = {role: mean(1e6 * cell.cpu_s.get(role, 0.0) / num_tokens(cell) for cell in done) for role in roles}
    return {role: value for role, value in found.items() if value >= 0.5}


def role_rest_percent(cells: Iterable[Cell]) -> dict[str, float]:
    """Processor time at rest by role, the mean of rounds; what takes less than 0.05 % is left out."""
    done = [cell for cell in measured(cells) if cell.rest_cores]
    roles = dict.fromkeys(role for cell in done for role in cell.rest_cores)
    found = {role: mean(100 * cell.rest_cores.get(role, 0.0) for cell in done) for role in roles}
    return {role: value for role, value in found.items() if value >= 0.05}


def _figure_rows(cells: Sequence[Cell]) -> list[Row]:
    found = {figure.name: compared(figure, cells) for figure in MAIN_FIGURES}
    systems = list(dict.fromkeys(system for by_system in found.values() for system in by_system))
    rows: list[Row] = [["figure", *systems]]
    for name, by_system in found.items():
        cells_of_row = [by_system.get(system) for system in systems]
        rows.append(
            [
                name,
                *(f"{one.median:.2f} ({one.least:.2f} to {one.most:.2f})" if one else NONE for one in cells_of_row),
            ]
        )
    return rows

"""From cells to the figures that this project answers for: ratios to the reference of the same block and round.

Knows nothing of how cells were measured. Serving is everything but the engine: of a system's processor time, what its
engine core and worker didn't take. It is divided by the same cell's worker time, which cancels the machine's mood; as
a worker spins while it waits for its next step, that flatters systems that feed it slowly, so the plain ratio is told
as well.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.serving.cells import Cell, Key, measured
from benchmarks.serving.processes import ENGINE_CORE, ENGINE_ROLES, ENGINE_WORKER, WHOLE
from benchmarks.serving.systems import REFERENCE

Compare = Callable[[Cell, Cell], float | None]


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one figure over its rounds."""

    median: float
    least: float
    most: float
    num_rounds: int


@dataclass(frozen=True, slots=True)
class Figure:
    """How a system's cell compares with another's of the same block and round.

    `against` names the other system (None: the system's own cell), `against_workload` its workload where it differs.
    """

    name: str
    workload: str
    compare: Compare
    against: str | None = REFERENCE
    against_workload: str | None = None


def serving_cpu_s(cell: Cell) -> float | None:
    """None where server and engine are one process, which can't be told apart."""
    if WHOLE in cell.cpu_s or not any(role in cell.cpu_s for role in ENGINE_ROLES):
        return None
    return sum(cpu_s for role, cpu_s in cell.cpu_s.items() if role not in ENGINE_ROLES)


def num_tokens(cell: Cell) -> int:
    """Of all loads."""
    return sum(part["num_tokens"] for part in cell.parts)


def serving_us_per_token(cell: Cell) -> float | None:
    serving_s, tokens = serving_cpu_s(cell), num_tokens(cell)
    return None if serving_s is None or not tokens else 1e6 * serving_s / tokens


def cores_at_rest(cell: Cell) -> float | None:
    """What serving takes while nobody asks anything, in cores. None where that wasn't watched."""
    if not cell.rest_cores or WHOLE in cell.rest_cores:
        return None
    return sum(cores for role, cores in cell.rest_cores.items() if role not in ENGINE_ROLES)


def serving_us_per_token_at_rest_apart(cell: Cell) -> float | None:
    """Without what serving takes at rest in the same time."""
    serving_s, cores, tokens = serving_cpu_s(cell), cores_at_rest(cell), num_tokens(cell)
    if serving_s is None or cores is None or not tokens:
        return None
    return 1e6 * (serving_s - cores * float(cell.statistics["duration_s"])) / tokens


def serving_per_worker(cell: Cell) -> float | None:
    """Serving time as a multiple of the engine worker's, or the core's where there is no worker."""
    serving_s = serving_cpu_s(cell)
    worker_s = cell.cpu_s.get(ENGINE_WORKER) or cell.cpu_s.get(ENGINE_CORE)
    return None if serving_s is None or not worker_s else serving_s / worker_s


def statistic(cell: Cell, *path: str) -> float | None:
    value: Any = cell.statistics
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _ratio(of: Callable[[Cell], float | None]) -> Compare:
    def compare(cell: Cell, other: Cell) -> float | None:
        mine, others = of(cell), of(other)
        return None if mine is None or not others else mine / others

    return compare


def _difference(*path: str) -> Compare:
    def compare(cell: Cell, other: Cell) -> float | None:
        mine, others = statistic(cell, *path), statistic(other, *path)
        return None if mine is None or others is None else mine - others

    return compare


def _statistic_ratio(*path: str) -> Compare:
    return _ratio(lambda cell: statistic(cell, *path))


def same_answers(cell: Cell, other: Cell) -> float | None:
    """The share of answers that are the same, word for word, in the order of requests."""
    pairs = list(zip(cell.answers, other.answers, strict=False))
    return sum(mine == others for mine, others in pairs) / len(pairs) if pairs else None


_IMAGES = [
    figure
    for size in ("0.3mp", "12mp")
    for way in ("data_uri", "upload", "url")
    for figure in (
        Figure(
            f"images_per_s_vs_vllm_serve_{size}_{way}", f"captions_{size}_{way}", _statistic_ratio("requests_per_s"),
            against_workload=f"captions_{size}_data_uri" if way == "upload" else None,
        ),
        Figure(
            f"same_captions_as_vllm_serve_{size}_{way}", f"captions_{size}_{way}", same_answers,
            against_workload=f"captions_{size}_data_uri" if way == "upload" else None,
        ),
    )
]  # fmt: skip
MAIN_FIGURES: tuple[Figure, ...] = (
    Figure("serving_cpu_per_token_vs_vllm_serve", "chat_c64", _ratio(serving_per_worker)),
    Figure("serving_cpu_per_token_vs_vllm_serve_plain", "chat_c64", _ratio(serving_us_per_token)),
    Figure(
        "serving_cpu_per_token_at_rest_apart_vs_vllm_serve", "chat_c64", _ratio(serving_us_per_token_at_rest_apart)
    ),
    Figure("throughput_vs_vllm_serve_c64", "chat_c64", _statistic_ratio("tokens_per_s")),
    Figure("ttft_added_ms_c1", "chat_c1", _difference("first_token_ms", "median")),
    Figure("itl_p99_vs_vllm_serve_c64", "chat_c64", _statistic_ratio("inter_token_ms", "p99")),
    Figure("non_streamed_requests_vs_vllm_serve_c64", "chat_whole_c64", _statistic_ratio("requests_per_s")),
)
FIGURES: tuple[Figure, ...] = (
    *MAIN_FIGURES,
    Figure("tokens_per_s_vs_ray_serve_llm_c64", "chat_c64", _statistic_ratio("tokens_per_s"), "ray_serve_llm"),
    Figure("two_models_tokens_per_s_vs_vllm_serve", "two_models_c64", _statistic_ratio("tokens_per_s")),
    *(
        Figure(f"end_to_end_p99_vs_vllm_serve_{load}", load, _statistic_ratio("end_to_end_ms", "p99"))
        for load in ("poisson_50", "poisson_80")
    ),
    *_IMAGES,
    Figure(
        "chat_p99_beside_images_vs_alone", "chat_beside_images", _statistic_ratio("end_to_end_ms", "p99"),
        against=None, against_workload="chat_beside_nothing",
    ),
    *(
        Figure(
            f"guidellm_{name}_vs_public", "chat_c64_guidellm", ratio, against=None, against_workload="chat_c64"
        )
        for name, ratio in (
            ("tokens_per_s", _statistic_ratio("tokens_per_s")),
            ("first_token", _statistic_ratio("first_token_ms", "median")),
            ("inter_token", _statistic_ratio("inter_token_ms", "median")),
        )
    ),
    Figure(
        "guidellm_tokens_per_s_vs_vllm_serve", "chat_c64_guidellm", _statistic_ratio("tokens_per_s")
    ),
    Figure(
        "our_client_tokens_per_s_vs_public", "chat_c64_our_client", _statistic_ratio("tokens_per_s"),
        against=None, against_workload="chat_c64",
    ),
    Figure(
        "our_client_itl_p99_vs_public", "chat_c64_our_client", _statistic_ratio("inter_token_ms", "p99"),
        against=None, against_workload="chat_c64",
    ),
)  # fmt: skip


def spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    return Spread(round(median(values), 4), round(min(values), 4), round(max(values), 4), len(values))


def compared(figure: Figure, cells: Sequence[Cell]) -> dict[str, Spread | None]:
    """The figure of every system that has its workload; None where nothing could be compared."""
    done = [cell for cell in cells if cell.is_sound]
    by_session = {(cell.key, cell.session): cell for cell in done}
    latest = {cell.key: cell for cell in reversed(done)}
    values: dict[str, list[float]] = {}
    for cell in cells:
        if cell.key.workload != figure.workload:
            continue
        mine = values.setdefault(cell.key.system, [])
        wanted = _other_key(figure, cell.key)
        # another workload may have been measured in an earlier session
        other = by_session.get((wanted, cell.session)) or (latest.get(wanted) if figure.against_workload else None)
        value = figure.compare(cell, other) if cell.is_sound and other is not None else None
        if value is not None:
            mine.append(value)
    return {system: spread(found) for system, found in values.items()}


def _other_key(figure: Figure, key: Key) -> Key:
    return Key(key.block, figure.against_workload or key.workload, key.round, figure.against or key.system)


def over_rounds(cells: Iterable[Cell], of: Callable[[Cell], float | None]) -> Spread | None:
    """A cell's own value over all rounds (and blocks, for the reference)."""
    found = [value for value in map(of, measured(cells)) if value is not None]
    return spread(found)


def failures(cells: Iterable[Cell]) -> dict[str, dict[str, list[str]]]:
    """By system, by reason: the workloads that it couldn't be measured under. A reason may end with a log's lines."""
    found: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        if cell.failure is not None:
            workloads = found.setdefault(cell.key.system, {}).setdefault(cell.failure, [])
            workloads += [cell.key.workload] if cell.key.workload not in workloads else []
    return found


def _first_lines(reasons: Mapping[str, list[str]]) -> dict[str, list[str]]:
    return {reason.splitlines()[0]: workloads for reason, workloads in reasons.items()}


def summary(cells: Sequence[Cell], about: Mapping[str, Any]) -> dict[str, Any]:
    """The last line of the output: each figure with one value a system, then spreads, failures, and `about`."""
    spreads = {figure.name: compared(figure, cells) for figure in FIGURES}
    told = {name: systems for name, systems in spreads.items() if systems or name in _MAIN_NAMES}
    chats = [cell for cell in cells if cell.key.workload == "chat_c64"]
    systems = dict.fromkeys(cell.key.system for cell in chats)
    return {
        **{name: {system: s and s.median for system, s in found.items()} for name, found in told.items()},
        **{
            name: {
                system: (found := over_rounds([c for c in chats if c.key.system == system], of)) and found.median
                for system in systems
            }
            for name, of in (("serving_us_per_token_c64", serving_us_per_token), ("cores_at_rest", cores_at_rest))
        },
        "spread": {
            name: {system: [s.least, s.most, s.num_rounds] for system, s in found.items() if s}
            for name, found in told.items()
        },
        "failed_requests": sum(int(cell.statistics["num_failed"]) for cell in measured(cells)),
        "not_measured": {system: _first_lines(reasons) for system, reasons in failures(cells).items()},
        **about,
    }


_MAIN_NAMES = frozenset(figure.name for figure in MAIN_FIGURES)

"""What became of a hostile case, counted by group and server, as tables. Pure."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from benchmarks.hostile_cases import GROUPS

Outcome = Literal["refused", "answered", "failed", "hung", "died"]
OUTCOMES: tuple[Outcome, ...] = ("refused", "answered", "failed", "hung", "died")


@dataclass(frozen=True, slots=True)
class Seen:
    """A case at a server. `reached`: the addresses that it connected to and that aren't the strangers' own."""

    server: str
    group: str
    name: str
    outcome: Outcome
    status: int | None
    seconds: float
    reached: tuple[str, ...] = ()
    message: str = ""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a group at a server. `grown_mib`: by how much one process's peak was above what it held just before.

    `good_s`: the slowest of the good requests that were sent meanwhile.
    """

    server: str
    group: str
    cpu_s: float
    grown_mib: float
    serves_on: bool
    good_s: float


@dataclass(frozen=True, slots=True)
class Results:
    """A whole run. `about` says when, with what, and how each server was started."""

    about: Mapping[str, object]
    seen: tuple[Seen, ...]
    costs: tuple[Cost, ...]


def classify(status: int | None, *, is_late: bool, is_alive: bool) -> Outcome:
    """`status` is None where no answer came; a connection that breaks off while the server lives is its failure."""
    if not is_alive:
        return "died"
    if is_late:
        return "hung"
    if status is None or status >= 500:
        return "failed"
    return "answered" if status < 400 else "refused"


def write(results: Results, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(results), indent=1) + "\n")


def read(path: Path) -> Results:
    values = json.loads(path.read_text())
    seen = tuple(Seen(**one | {"reached": tuple(one["reached"])}) for one in values["seen"])
    return Results(values["about"], seen, tuple(Cost(**one) for one in values["costs"]))


def outcome_cell(seen: Iterable[Seen]) -> str:
    """As `30 refused, 4 answered; 4 inside`, without what there was none of."""
    counted = Counter(one.outcome for one in seen)
    words = ", ".join(f"{counted[outcome]} {outcome}" for outcome in OUTCOMES if counted[outcome])
    num_inside = sum(bool(one.reached) for one in seen)
    return words + (f"; **{num_inside} inside**" if num_inside else "")


def cost_cell(seen: Sequence[Seen], cost: Cost) -> str:
    slowest_s = max(one.seconds for one in seen)
    figures = f"{slowest_s:.1f} / {cost.cpu_s:.0f} / {cost.grown_mib:.0f} / {cost.good_s:.1f}"
    return figures + ("" if cost.serves_on else ", restarted")


def outcome_table(results: Results) -> str:
    """Markdown: a row for each group, a column for each server, and a last row of all."""
    servers = _servers(results)
    rows = [_head("what was sent", servers)]
    for group, size, by_server in _groups(results):
        rows.append(_row(f"{group} ({size})", [outcome_cell(by_server[server]) for server in servers]))
    everything = [[one for one in results.seen if one.server == server] for server in servers]
    rows.append(_row(f"all ({len(everything[0])})", [outcome_cell(seen) for seen in everything]))
    return "\n".join(rows)


def cost_table(results: Results) -> str:
    """Markdown: slowest answer in s, processor seconds, growth of one process in MiB, slowest good answer in s."""
    servers = _servers(results)
    costs = {(cost.server, cost.group): cost for cost in results.costs}
    rows = [_head("slowest s / CPU s / MiB / good s", servers)]
    for group, _, by_server in _groups(results):
        rows.append(_row(group, [cost_cell(by_server[server], costs[server, group]) for server in servers]))
    return "\n".join(rows)


def totals(results: Results) -> dict[str, dict[str, float]]:
    """By server: how many of each outcome, how many went inside, and the worst figures."""
    told: dict[str, dict[str, float]] = {}
    for server in _servers(results):
        seen = [one for one in results.seen if one.server == server]
        costs = [cost for cost in results.costs if cost.server == server]
        counted = Counter(one.outcome for one in seen)
        told[server] = {
            **{outcome: counted[outcome] for outcome in OUTCOMES},
            "inside": sum(bool(one.reached) for one in seen),
            "slowest_s": max(one.seconds for one in seen),
            "cpu_s": round(sum(cost.cpu_s for cost in costs), 1),
            "most_grown_mib": max(cost.grown_mib for cost in costs),
            "slowest_good_s": max(cost.good_s for cost in costs),
            "restarts": sum(not cost.serves_on for cost in costs),
        }
    return told


def _servers(results: Results) -> list[str]:
    return list(dict.fromkeys(one.server for one in results.seen))


def _groups(results: Results) -> Iterable[tuple[str, int, dict[str, list[Seen]]]]:
    servers = _servers(results)
    for group in GROUPS:
        by_server = {
            server: [one for one in results.seen if (one.server, one.group) == (server, group)] for server in servers
        }
        if size := max(map(len, by_server.values())):
            yield group, size, by_server


def _head(first: str, servers: Sequence[str]) -> str:
    return _row(first, servers) + "\n" + _row("---", ["---"] * len(servers)).replace(" ", "")


def _row(first: str, cells: Sequence[str]) -> str:
    return f"| {' | '.join([first, *cells])} |"

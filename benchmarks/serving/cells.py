"""What was measured, a line each, kept so that an interrupted run goes on where it stopped.

A cell is one system under one workload in one round of one block. Those of one block, workload and round belong
together, because they were measured right after one another: a group that isn't whole is measured again.
"""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Key:
    block: str
    workload: str
    round: int
    system: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement. `failure` says why there is none; then the rest is empty.

    `session` is when its block was started; ratios are between cells of one session. `cpu_s` is processor seconds by
    role, and `rest_cores` the cores that each role takes while nobody asks anything. `parts` are the statistics of
    each load, the first one's also `statistics`.
    """

    key: Key
    session: str = ""
    failure: str | None = None
    client: str = ""
    offered_per_s: float | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    parts: list[dict[str, Any]] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)
    rest_cores: dict[str, float] = field(default_factory=dict)
    processes: list[dict[str, Any]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether it may be compared: it was measured, and at most one request of a hundred failed."""
        if self.failure is not None:
            return False
        return bool(100 * self.statistics["num_failed"] <= self.statistics["num_requests"])

    def as_line(self) -> str:
        return json.dumps(asdict(self))


class CellStore:
    """The lines of one file. Of two cells with the same key the later one counts.

    An earlier one of the `reference` is kept as long as another system's cell has no other to be compared with.
    """

    def __init__(self, path: Path, reference: str, *, retries_failures: bool = False) -> None:
        self._path, self._reference = path, reference
        self._retries_failures = retries_failures
        self._latest: dict[Key, Cell] = {}
        self._references: dict[tuple[Key, str], Cell] = {}
        if path.exists():
            text = path.read_text()
            for line in text.splitlines():
                self._remember(_parsed(line))
            if not text.endswith("\n"):
                path.write_text(text + "\n")  # a run was killed while it wrote: the next cell gets a line of its own

    @property
    def cells(self) -> list[Cell]:
        """Those that count."""
        latest = list(self._latest.values())
        needed = {(self._reference_of(cell.key), cell.session) for cell in latest}
        earlier = [
            cell for at, cell in self._references.items() if at in needed and self._latest[cell.key] is not cell
        ]
        return [*latest, *earlier]

    def add(self, cell: Cell) -> None:
        """On disk when this returns."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(cell.as_line() + "\n")
        self._keep(cell)

    def has_group(self, block: str, workload: str, round: int, systems: Collection[str]) -> bool:
        """Whether each of these systems was measured, or failed, in this round, beside the reference if it is one."""
        cells = [self._latest.get(Key(block, workload, round, system)) for system in systems]
        return all(
            cell is not None and (self._has_reference(cell) or self._reference not in systems) for cell in cells
        )

    def _has_reference(self, cell: Cell) -> bool:
        return (self._reference_of(cell.key), cell.session) in self._references

    def _reference_of(self, key: Key) -> Key:
        return replace(key, system=self._reference)

    def _remember(self, cell: Cell | None) -> None:
        if cell is None:
            return
        if cell.failure is not None and self._retries_failures:
            self._latest.pop(cell.key, None)
        else:
            self._keep(cell)

    def _keep(self, cell: Cell) -> None:
        self._latest[cell.key] = cell
        if cell.key.system == self._reference:
            self._references[cell.key, cell.session] = cell


def _parsed(line: str) -> Cell | None:
    """None for the half line that a run leaves which was killed while it wrote."""
    try:
        values = json.loads(line)
    except json.JSONDecodeError:
        return None
    return Cell(**{**values, "key": Key(**values["key"])})


def measured(cells: Iterable[Cell]) -> list[Cell]:
    return [cell for cell in cells if cell.failure is None]

"""The whole plan of a config file: every finding, and for each model where it goes and what it can hold."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from serve_app.placement.packing import Node
from serve_app.placement.shortage import could_ever_fit, need_text
from serve_app.plan.application import Application, applications_of
from serve_app.plan.finding import Finding, Severity, note
from serve_app.plan.fit import Fit, fit
from serve_app.plan.gpu_memory import GpuMemory, cpu_memory_findings, memory_findings, memory_of
from serve_app.plan.model_size import ModelSize, size_of
from serve_app.plan.settings import settings_findings

_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}


@dataclass(frozen=True, slots=True)
class Row:
    """One application in the plan. `num_requests` is what one replica works on at once."""

    fit: Fit
    size: ModelSize | None
    memory: GpuMemory | None
    num_requests: int | None

    @property
    def application(self) -> Application:
        return self.fit.application

    def as_json(self) -> dict[str, Any]:
        application = self.application
        return {
            "name": application.name,
            "kind": "model" if application.model else "application",
            "fits": self.fit.is_whole,
            "needs": need_text(application.need),
            "nodes": list(self.fit.nodes),
            "replicas": {
                "min": application.num_at_start,
                "max": application.num_at_most,
                "placed": self.fit.num_placed,
                "reachable": self.fit.num_reachable,
            },
            "room_for_one_more": self.fit.has_room_beside,
            "requests_per_replica": self.num_requests,
            "requests_at_once": (self.num_requests or 0) * self.fit.num_reachable if self.num_requests else None,
            "size": asdict(self.size) if self.size else None,
            "gpu_memory": asdict(self.memory) if self.memory else None,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """`works` is False where something in the file can't."""

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]

    @property
    def works(self) -> bool:
        return all(finding.severity != "error" for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        return {
            "works": self.works,
            "applications": [row.as_json() for row in self.rows],
            "findings": [asdict(finding) for finding in self.findings],
        }


def make_plan(values: dict[str, Any], nodes: Sequence[Node]) -> Plan:
    """The plan of a file that `read_config_file` has checked. Reads the checkpoints' headers where they lie here."""
    applications = applications_of(values)
    findings = list(settings_findings(values, applications))
    fits, fit_findings = fit(applications, nodes)
    findings += fit_findings
    rows = []
    for place in fits:
        row = _row(place, nodes)
        rows.append(row)
        if row.application.model and row.size:
            args = f"{row.application.place} '{row.application.name}': args"
            findings += memory_findings(row.application.model, row.size, row.memory, args)
            if row.memory is None:
                findings += cpu_memory_findings(row.size, [nodes[index] for index in place.indices], args)
    findings += [*_unknown_sizes(rows), *_updates(rows)]
    return Plan(tuple(rows), tuple(sorted(findings, key=lambda finding: _ORDER[finding.severity])))


def _row(place: Fit, nodes: Sequence[Node]) -> Row:
    model = place.application.model
    if model is None:
        return Row(place, None, None, None)
    size = size_of(model)
    uses_gpus = place.application.need.total.get("GPU", 0.0) > 0
    need = place.application.need
    with_gpus = [
        node.gpu_memory_gib
        for node in nodes
        if node.total.get("GPU") and (not need.is_on_one_node or could_ever_fit(need, [node]))
    ]
    smallest = min((gib for gib in with_gpus if gib), default=None)
    memory = memory_of(model, size, smallest) if uses_gpus else None
    num_requests = min(model.num_running_at_once, model.ongoing_limit)
    if memory and memory.num_full_contexts is not None and model.engine == "transformers":
        num_requests = min(num_requests, max(1, memory.num_full_contexts))  # it doesn't page: a batch has it all
    return Row(place, size, memory, num_requests)


def _unknown_sizes(rows: list[Row]) -> list[Finding]:
    unknown = [
        (row.application.name, row.size.unknown)
        for row in rows
        if row.size and row.size.unknown and row.application.model and row.application.model.engine != "scripted"
    ]
    if not unknown:
        return []
    names = ", ".join(f"'{name}' ({why})" for name, why in unknown)
    return [note("applications", f"the memory of {names} isn't counted", "download it here, or plan where it lies")]


def _updates(rows: list[Row]) -> list[Finding]:
    """What a rolling update costs: Ray Serve stops a fifth of the replicas, at least one, and then starts the new."""
    alone = [row for row in rows if row.application.model and row.application.num_at_start == 1 and row.fit.is_whole]
    if not alone:
        return []
    names = ", ".join(f"'{row.application.name}'" for row in alone)
    spare = [
        f"'{row.application.name}' {need_text(row.application.need)}: "
        + ("there is room" if _has_room_for_second(row) else "there is no room")
        for row in alone
    ]
    return [
        note(
            "applications",
            f"an update needs no spare room and stops one replica of {names} before the new one starts: a model with "
            "one is away while it loads",
            "set min_replicas: 2, or deploy the new version under a second name and move the alias; spare for that: "
            + "; ".join(spare),
        )
    ]


def _has_room_for_second(row: Row) -> bool:
    return row.fit.num_reachable > 1 or row.fit.has_room_beside

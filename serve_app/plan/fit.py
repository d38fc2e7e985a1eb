"""Which replicas find room on which nodes: at the start, and as far as autoscaling may go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve_app.placement.search import (
    Need,
    Node,
    Placement,
    Rooms,
    nodes_after,
    num_placeable,
    place_all,
    rooms_of,
    spread,
)
from serve_app.placement.shortage import could_ever_fit, lack, remedy, wanted
from serve_app.plan.application import Application
from serve_app.plan.finding import Finding, error, note, warning

PACKING = "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY=1"


@dataclass(frozen=True, slots=True)
class Fit:
    """An application's replicas on the nodes: `nodes` of those at the start, once for each that is placed."""

    application: Application
    nodes: tuple[str, ...]
    indices: tuple[int, ...]  # of the same nodes
    num_placed: int  # of those at the start
    num_reachable: int  # beside the others' least
    has_room_beside: bool  # for one replica more than the others' least and its own most

    @property
    def is_whole(self) -> bool:
        return self.num_placed == self.application.num_at_start and self.num_reachable > 0


def fit(applications: Sequence[Application], nodes: Sequence[Node]) -> tuple[list[Fit], list[Finding]]:
    """Each application's place, and what finds none. All at their least number of replicas come first."""
    rooms = rooms_of(nodes)
    placed, findings = _start(applications, nodes, rooms)
    fits = []
    for application in applications:
        own = [where for owner, where in placed if owner is application]
        others = [owner.need for owner, _ in placed if owner is not application]
        most = application.num_at_most
        num_reachable = num_placeable(application.need, others, rooms, len(own), most + 1)
        indices = tuple(dict.fromkeys(index for where in own for index in where))
        names = tuple(nodes[index].name for index in indices)
        fits.append(Fit(application, names, indices, len(own), min(num_reachable, most), num_reachable > most))
    findings += [finding for found in fits for finding in _reach(found, nodes, placed)]
    if not any(finding.severity == "error" for finding in findings):
        findings += _stranded(applications, rooms)
        findings += _together(applications, rooms)
    return fits, findings


Placed = list[tuple[Application, Placement]]


def _start(applications: Sequence[Application], nodes: Sequence[Node], rooms: Rooms) -> tuple[Placed, list[Finding]]:
    """The replicas at the start, in the file's order; one that finds no room beside those above it is left out."""
    wants = [application for application in applications for _ in range(application.num_at_start)]
    whole = place_all([a.need for a in wants], rooms)
    if whole is not None:
        return list(zip(wants, whole, strict=True)), []
    kept: list[Application] = []
    placed: list[Placement] = []
    refused: dict[str, Finding] = {}
    for application in wants:
        if application.name in refused:
            continue
        tried = place_all([a.need for a in [*kept, application]], rooms)
        if tried is None:
            left = nodes_after(nodes, [a.need for a in kept], placed)
            refused[application.name] = _refusal(application, kept.count(application), nodes, left)
        else:
            kept, placed = [*kept, application], tried
    return list(zip(kept, placed, strict=True)), list(refused.values())


def _refusal(application: Application, num_kept: int, nodes: Sequence[Node], left: Sequence[Node]) -> Finding:
    place = f"{application.place} '{application.name}'"
    which = f"replica {num_kept + 1} of {application.num_at_start} of " if application.num_at_start > 1 else ""
    if not could_ever_fit(application.need, nodes):
        return error(place, f"{application.title} {lack(application.need, nodes)}", remedy(application.need, nodes))
    place += ": args.autoscaling.min_replicas" if which and application.model else ""
    return error(
        place,
        f"{which}{application.title} {lack(application.need, left)}, beside what stands above it in the file",
        "start fewer replicas, ask for less (num_gpus, num_cpus), or add a node",
    )


def _reach(found: Fit, nodes: Sequence[Node], placed: Placed) -> Iterator[Finding]:
    """Replicas that autoscaling would add and no node takes."""
    application, scaling = (
        found.application,
        f"{found.application.place} '{found.application.name}': args.autoscaling",
    )
    if found.num_placed < application.num_at_start or found.num_reachable == application.num_at_most:
        return
    if found.num_reachable == 0:
        left = nodes_after(nodes, [a.need for a, _ in placed], [where for _, where in placed])
        what = f"{application.title} can never be woken: it {lack(application.need, left)}"
        yield error(f"{scaling}.min_replicas", what, remedy(application.need, left))
        return
    yield warning(
        f"{scaling}.max_replicas",
        f"{application.title} can never reach {application.num_at_most} replicas: {found.num_reachable} fit beside "
        f"the least of the others, each with {wanted(application.need)}",
        f"set it to {found.num_reachable}, or add nodes",
    )


def _stranded(applications: Sequence[Application], rooms: Rooms) -> Iterator[Finding]:
    """Ray Serve spreads actors over the nodes, which can leave parts where a larger replica needs a whole."""
    wants = [application for application in applications for _ in range(application.num_at_start)]
    for order in (wants, wants[::-1]):
        for first in range(len(rooms)):
            lost = spread([application.need for application in order], rooms, first)
            if lost is not None:
                application = order[lost]
                yield warning(
                    f"{application.place} '{application.name}'",
                    f"{application.title} fits only where the others leave it room: Ray Serve spreads replicas over "
                    f"the nodes, and may leave none with {wanted(application.need)}",
                    f"set {PACKING} where Ray starts, so that replicas are packed, or add a node",
                )
                return


def _together(applications: Sequence[Application], rooms: Rooms) -> Iterator[Finding]:
    """Each model may reach its most alone; whether all can at once is worth knowing."""
    growing = [a for a in applications if a.num_at_most > a.num_at_start]
    if len(growing) < 2:
        return
    needs: list[Need] = [a.need for a in applications for _ in range(a.num_at_most)]
    if place_all(needs, rooms) is None:
        names = ", ".join(f"'{a.name}'" for a in growing)
        yield note(
            "applications",
            f"{names} can't all have their max_replicas at once: who asks first gets the room",
            "raise min_replicas of the one that must have it, or add nodes",
        )

"""Which replicas find room on which nodes: at the start, and as far as autoscaling may go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve_app.placement.packing import (
    Node,
    Placement,
    Rooms,
    first_unplaced,
    nodes_with,
    num_placeable,
    pack,
    rooms_of,
)
from serve_app.placement.shortage import could_ever_fit, lack, need_text, remedy
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
    placed, left, findings = _start(applications, nodes, rooms)
    fits = []
    for application in applications:
        own = [where for owner, where in placed if owner is application]
        num_more = num_placeable(application.need, left, application.num_at_most + 1 - len(own))
        indices = tuple(dict.fromkeys(index for where in own for index in where))
        names = tuple(nodes[index].name for index in indices)
        num_reachable = min(len(own) + num_more, application.num_at_most)
        has_room_beside = len(own) + num_more > application.num_at_most
        fits.append(Fit(application, names, indices, len(own), num_reachable, has_room_beside))
    findings += [finding for fit in fits for finding in _reach(fit, nodes_with(nodes, left))]
    if not any(finding.severity == "error" for finding in findings):
        findings += _stranded(applications, rooms)
        findings += _together(applications, rooms)
    return fits, findings


def _start(
    applications: Sequence[Application], nodes: Sequence[Node], rooms: Rooms
) -> tuple[list[tuple[Application, Placement]], Rooms, list[Finding]]:
    """The replicas at the start, where they go, and what they leave.

    Where not all fit, the first of the file come first, and one that finds no room beside those is left out.
    """
    replicas = [application for application in applications for _ in range(application.num_at_start)]
    packed = pack([application.need for application in replicas], rooms)
    if packed:
        return list(zip(replicas, packed[0], strict=True)), packed[1], []
    kept: list[Application] = []
    placements: list[Placement] = []
    left, refused = rooms, {}
    for application in replicas:
        if application.name in refused:
            continue
        packed = pack([a.need for a in [*kept, application]], rooms)
        if packed:
            kept.append(application)
            placements, left = packed
        else:
            num_kept = kept.count(application)
            refused[application.name] = _refusal(application, num_kept, nodes, nodes_with(nodes, left))
    return list(zip(kept, placements, strict=True)), left, list(refused.values())


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


def _reach(fit: Fit, left: Sequence[Node]) -> Iterator[Finding]:
    """Replicas that autoscaling would add and no node takes; `left` is what the replicas at the start leave."""
    application = fit.application
    scaling = f"{application.place} '{application.name}': args.autoscaling"
    if fit.num_placed < application.num_at_start or fit.num_reachable == application.num_at_most:
        return
    if fit.num_reachable == 0:
        what = f"{application.title} can never be woken: it {lack(application.need, left)}"
        yield error(f"{scaling}.min_replicas", what, remedy(application.need, left))
        return
    yield warning(
        f"{scaling}.max_replicas",
        f"{application.title} can never reach {application.num_at_most} replicas: {fit.num_reachable} fit beside "
        f"the least of the others, each with {need_text(application.need)}",
        f"set it to {fit.num_reachable}, or add nodes",
    )


def _stranded(applications: Sequence[Application], rooms: Rooms) -> Iterator[Finding]:
    """Ray Serve spreads actors over the nodes, which can leave parts where a larger replica needs a whole."""
    replicas = [application for application in applications for _ in range(application.num_at_start)]
    for order in (replicas, replicas[::-1]):
        for turn in range(len(rooms)):
            unplaced = first_unplaced([application.need for application in order], rooms, turn)
            if unplaced is not None:
                application = order[unplaced]
                yield warning(
                    f"{application.place} '{application.name}'",
                    f"{application.title} fits only where the others leave it room: Ray Serve spreads replicas over "
                    f"the nodes, and may leave none with {need_text(application.need)}",
                    f"set {PACKING} where Ray starts, so that replicas are packed, or add a node",
                )
                return


def _together(applications: Sequence[Application], rooms: Rooms) -> Iterator[Finding]:
    """Each model may reach its most alone; whether all can at once is worth knowing."""
    growing = [a for a in applications if a.num_at_most > a.num_at_start]
    if len(growing) < 2:
        return
    if pack([a.need for a in applications for _ in range(a.num_at_most)], rooms) is None:
        names = ", ".join(f"'{a.name}'" for a in growing)
        yield note(
            "applications",
            f"{names} can't all have their max_replicas at once: who asks first gets the room",
            "raise min_replicas of the one that must have it, or add nodes",
        )

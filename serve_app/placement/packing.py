"""Where replicas fit: what each asks for, what the nodes have left, and where Ray would put it.

Plain arithmetic in Ray's terms (resources, bundles, strategies), greedy as Ray is. `serve-app plan`, the reasons in
`/v1/models` and `serve-app up` follow these rules. Imports no Ray and knows nothing about models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

EPSILON = 1e-6  # Ray counts in ten-thousandths

Bundle = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One node's resources by Ray's names (`CPU`, `GPU`, …): all of them, and what is free."""

    name: str
    total: Mapping[str, float]
    free: Mapping[str, float]
    gpu_memory_gib: float | None = None  # of each of its GPUs
    memory_gib: float | None = None  # of the node itself


@dataclass(frozen=True, slots=True)
class Need:
    """What one replica asks for: an actor is one bundle without a strategy, a placement group several with one."""

    bundles: tuple[Bundle, ...]
    strategy: str | None = None

    @property
    def is_on_one_node(self) -> bool:
        return self.strategy in (None, "STRICT_PACK")

    @property
    def total(self) -> dict[str, float]:
        """All bundles together, by resource."""
        total: dict[str, float] = {}
        for resource, amount in (item for bundle in self.bundles for item in bundle):
            total[resource] = total.get(resource, 0.0) + amount
        return total


def need_of(
    actor_options: Mapping[str, Any], bundles: Sequence[Mapping[str, float]] | None = None, strategy: str = "PACK"
) -> Need:
    """The need of a replica with these actor options, or with this placement group, which holds the actor."""
    if bundles:
        return Need(tuple(_bundle(bundle) for bundle in bundles), strategy)
    resources = {"CPU": actor_options.get("num_cpus") or 0.0, "GPU": actor_options.get("num_gpus") or 0.0}
    return Need((_bundle(resources | dict(actor_options.get("resources") or {})),))


def _bundle(resources: Mapping[str, float]) -> Bundle:
    return tuple((resource, float(amount)) for resource, amount in sorted(resources.items()) if amount > 0)


@dataclass(frozen=True, slots=True)
class Room:
    """What is left on one node, with each GPU apart: a fraction lies on one GPU, as Ray places it."""

    gpus: tuple[float, ...]
    others: Mapping[str, float]
    is_idle: bool

    @property
    def free(self) -> dict[str, float]:
        return {**self.others, "GPU": sum(self.gpus)}

    @property
    def size(self) -> tuple[float, float]:
        """Ray's order of what is scarce."""
        return sum(self.gpus), self.others.get("CPU", 0.0)

    def without(self, bundles: Sequence[Bundle]) -> "Room | None":
        """The room that is left beside the bundles; None where they don't fit."""
        gpus, others = list(self.gpus), dict(self.others)
        for resource, amount in (item for bundle in bundles for item in bundle):
            if resource == "GPU":
                if not _take_gpus(gpus, amount):
                    return None
            elif others.get(resource, 0.0) + EPSILON < amount:
                return None
            else:
                others[resource] = round(others[resource] - amount, 6)
        return Room(tuple(gpus), others, is_idle=False)


def _take_gpus(gpus: list[float], amount: float) -> bool:
    """Take whole GPUs, or a fraction from the GPU with the least left that has it, as Ray does."""
    for _ in range(max(1, int(amount))):
        share = min(amount, 1.0)
        fitting = [free for free in gpus if free + EPSILON >= share]
        if not fitting:
            return False
        gpus.remove(min(fitting))
        gpus.append(round(min(fitting) - share, 6))
    return True


Rooms = tuple[Room, ...]
Placement = tuple[int, ...]  # for each bundle the index of its node


def rooms_of(nodes: Sequence[Node]) -> Rooms:
    """What is free now. Ray says how much of a node's GPUs is free, not of each: taken as together as can be."""
    return tuple(_room(node) for node in nodes)


def _room(node: Node) -> Room:
    num_gpus = max(0.0, node.free.get("GPU", 0.0))
    num_whole = int(num_gpus + EPSILON)
    part = round(num_gpus - num_whole, 6)
    others = {resource: amount for resource, amount in node.free.items() if resource != "GPU"}
    return Room((1.0,) * num_whole + ((part,) if part > EPSILON else ()), others, node.free == node.total)


def nodes_with(nodes: Sequence[Node], rooms: Rooms) -> list[Node]:
    """The nodes with what these rooms have left."""
    return [replace(node, free=room.free) for node, room in zip(nodes, rooms, strict=True)]


def place(need: Need, rooms: Rooms, turn: int | None = None) -> tuple[Placement, Rooms] | None:
    """Where Ray puts one replica, and the rooms it leaves; None where it finds none.

    An actor goes to the node that it fills best, and to one in use before an idle one (`_find_best_fit_node_for_pack`
    in Ray Serve's deployment_scheduler.py). With a `turn` it goes to the next node with room from that index on: Ray
    Serve's default. A group goes by its strategy.
    """
    if not need.is_on_one_node:
        return _place_bundles(need, rooms)
    fitting = [(index, left) for index, room in enumerate(rooms) if (left := room.without(need.bundles))]
    if not fitting:
        return None
    if need.strategy is None and turn is not None:
        index, left = min(fitting, key=lambda item: (item[0] - turn) % len(rooms))
    else:
        index, left = min(fitting, key=lambda item: (rooms[item[0]].is_idle, item[1].size))
    return (index,) * len(need.bundles), _replaced(rooms, index, left)


def _place_bundles(need: Need, rooms: Rooms) -> tuple[Placement, Rooms] | None:
    """A group over several nodes. As Ray does: GPUs first, and always the node with the most free."""
    is_packed, is_strict = need.strategy == "PACK", need.strategy == "STRICT_SPREAD"
    nodes: dict[int, int] = {}  # by bundle
    for number in sorted(range(len(need.bundles)), key=lambda i: -dict(need.bundles[i]).get("GPU", 0.0)):
        used = set(nodes.values())
        fitting = [
            (index, left)
            for index, room in enumerate(rooms)
            if not (is_strict and index in used) and (left := room.without([need.bundles[number]]))
        ]
        if not fitting:
            return None
        index, left = max(fitting, key=lambda item: ((item[0] in used) == is_packed, item[1].size))
        nodes[number], rooms = index, _replaced(rooms, index, left)
    return tuple(nodes[number] for number in range(len(need.bundles))), rooms


def _replaced(rooms: Rooms, index: int, room: Room) -> Rooms:
    return (*rooms[:index], room, *rooms[index + 1 :])


def pack(needs: Sequence[Need], rooms: Rooms) -> tuple[list[Placement], Rooms] | None:
    """Where all replicas go, the largest first, and the rooms they leave; None where one finds no room.

    Ray Serve does so where it packs, and where it doesn't, this is as good as it may get.
    """
    placed: dict[int, Placement] = {}
    for number in sorted(range(len(needs)), key=lambda i: _size(needs[i]), reverse=True):
        placement = place(needs[number], rooms)
        if placement is None:
            return None
        placed[number], rooms = placement
    return [placed[number] for number in range(len(needs))], rooms


def _size(need: Need) -> tuple[float, float, float]:
    gpus = need.total.get("GPU", 0.0)
    return (gpus if need.is_on_one_node else 0.0, gpus, need.total.get("CPU", 0.0))


def first_unplaced(needs: Sequence[Need], rooms: Rooms, turn: int) -> int | None:
    """Place in the given order as Ray Serve does where it doesn't pack: actors in turn on the nodes with room.

    The index of the first replica that finds no room; None where all do.
    """
    for number, need in enumerate(needs):
        placement = place(need, rooms, turn)
        if placement is None:
            return number
        nodes, rooms = placement
        turn = nodes[0] + 1 if need.strategy is None else turn
    return None


def num_placeable(need: Need, rooms: Rooms, at_most: int) -> int:
    """How many such replicas find room, one after the other."""
    for num_placed in range(at_most):
        placement = place(need, rooms)
        if placement is None:
            return num_placed
        _, rooms = placement
    return at_most

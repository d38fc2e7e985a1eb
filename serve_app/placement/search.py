"""Where replicas fit: what each needs, what the nodes have left, and the sentence where there is no room.

Pure arithmetic in Ray's terms (resources, bundles, strategies). The same rules serve `serve-app plan`, the reasons in
`/v1/models` and what `serve-app up` prints. Imports no Ray and knows nothing of models.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

EPSILON = 1e-6  # Ray counts in ten-thousandths
MAX_SEARCH_STEPS = 20_000  # a second on small clusters, some on large ones; what is beyond is taken for no room

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
        together: dict[str, float] = {}
        for bundle in self.bundles:
            for resource, amount in bundle:
                together[resource] = together.get(resource, 0.0) + amount
        return together


def need_of(
    actor_options: Mapping[str, Any], bundles: Sequence[Mapping[str, float]] | None = None, strategy: str = "PACK"
) -> Need:
    """What Ray asks for a replica with these actor options, or with this placement group, which holds the actor."""
    if bundles:
        return Need(tuple(_bundle(bundle) for bundle in bundles), strategy)
    wanted = {"CPU": actor_options.get("num_cpus") or 0.0, "GPU": actor_options.get("num_gpus") or 0.0}
    return Need((_bundle(wanted | dict(actor_options.get("resources") or {})),))


def _bundle(wanted: Mapping[str, float]) -> Bundle:
    return tuple((resource, float(amount)) for resource, amount in sorted(wanted.items()) if amount > 0)


@dataclass(frozen=True, slots=True, order=True)
class Room:
    """What is left on one node, with each GPU apart: a fraction lies on one GPU, as Ray places it."""

    gpus: tuple[float, ...]
    rest: tuple[tuple[str, float], ...]

    def without(self, bundle: Bundle) -> "Room | None":
        """The room that is left beside the bundle; None where it doesn't fit."""
        gpus, rest = list(self.gpus), dict(self.rest)
        for resource, amount in bundle:
            if resource == "GPU":
                if not _take_gpus(gpus, amount):
                    return None
            elif rest.get(resource, 0.0) + EPSILON < amount:
                return None
            else:
                rest[resource] = round(rest[resource] - amount, 6)
        return Room(tuple(sorted(gpus)), tuple(sorted(rest.items())))


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
    """What is free now. Ray tells how much of a node's GPUs is free, not of each: taken as together as can be."""
    return tuple(_room(node.free) for node in nodes)


def _room(free: Mapping[str, float]) -> Room:
    num_gpus = max(0.0, free.get("GPU", 0.0))
    whole, part = int(num_gpus + EPSILON), num_gpus - int(num_gpus + EPSILON)
    gpus = [1.0] * whole + ([round(part, 6)] if part > EPSILON else [])
    return Room(tuple(sorted(gpus)), tuple(sorted((r, a) for r, a in free.items() if r != "GPU")))


def placements(need: Need, rooms: Rooms) -> Iterator[tuple[Placement, Rooms]]:
    """Every way, alike nodes taken once, to place one replica, with what it leaves; Ray's preference first."""
    if need.is_on_one_node:
        tried: set[Room] = set()
        for index in sorted(range(len(rooms)), key=lambda i: sum(rooms[i].gpus)):
            if rooms[index] in tried:
                continue
            tried.add(rooms[index])
            left: Room | None = rooms[index]
            for bundle in need.bundles:
                left = left.without(bundle) if left else None
            if left:
                yield (index,) * len(need.bundles), _replaced(rooms, index, left)
        return
    yield from _spread_out(need, rooms, (), set())


def _spread_out(
    need: Need, rooms: Rooms, placed: Placement, dead_ends: set[tuple[Any, ...]]
) -> Iterator[tuple[Placement, Rooms]]:
    """The rest of a group's bundles on any nodes. A state that led nowhere is not tried again."""
    if len(placed) == len(need.bundles):
        yield placed, rooms
        return
    is_strict = need.strategy == "STRICT_SPREAD"
    if dead_ends and (_state(rooms, placed, is_strict) in dead_ends or len(dead_ends) > MAX_SEARCH_STEPS):
        return
    bundle, num_found = need.bundles[len(placed)], 0
    tried: set[tuple[Room, bool]] = set()
    wants_used = need.strategy == "PACK"
    for index in sorted(range(len(rooms)), key=lambda i: ((i in placed) != wants_used, -sum(rooms[i].gpus))):
        if (is_strict and index in placed) or (rooms[index], index in placed) in tried:
            continue
        tried.add((rooms[index], index in placed))
        left = rooms[index].without(bundle)
        if left:
            for found in _spread_out(need, _replaced(rooms, index, left), (*placed, index), dead_ends):
                num_found += 1
                yield found
    if not num_found:
        dead_ends.add(_state(rooms, placed, is_strict))


def _state(rooms: Rooms, placed: Placement, is_strict: bool) -> tuple[Any, ...]:
    """What decides whether the rest fits: the nodes in any order, and which are taken where each may be once."""
    return (len(placed), tuple(sorted((room, is_strict and i in placed) for i, room in enumerate(rooms))))


def _replaced(rooms: Rooms, index: int, room: Room) -> Rooms:
    return (*rooms[:index], room, *rooms[index + 1 :])


def place_all(needs: Sequence[Need], rooms: Rooms) -> list[Placement] | None:
    """Where each replica goes if all are placed as well as can be; None where there is no such way.

    An exact search within `MAX_SEARCH_STEPS`: the largest first, and no state of the nodes twice.
    """
    order = sorted(range(len(needs)), key=lambda i: _size(needs[i]), reverse=True)
    dead_ends: set[tuple[int, tuple[Room, ...]]] = set()
    placed: list[Placement] = []
    tried = [(rooms, placements(needs[order[0]], rooms))] if order else []  # by step: the nodes before, the ways left
    num_steps = 0
    while len(placed) < len(order):
        before, ways = tried[-1]
        way = next(ways, None)
        if way is None:
            dead_ends.add((len(placed), tuple(sorted(before))))
            tried.pop()
            if not tried:
                return None
            placed.pop()
            continue
        placement, left = way
        num_steps += 1
        if num_steps > MAX_SEARCH_STEPS:
            return None
        if dead_ends and (len(placed) + 1, tuple(sorted(left))) in dead_ends:
            continue
        placed.append(placement)
        if len(placed) < len(order):
            tried.append((left, placements(needs[order[len(placed)]], left)))
    return [placement for _, placement in sorted(zip(order, placed, strict=True))]


def _size(need: Need) -> tuple[float, float, int]:
    """What is hard to place comes first: many GPUs on one node, then many GPUs, then much of anything."""
    gpus = need.total.get("GPU", 0.0)
    return (gpus if need.is_on_one_node else 0.0, gpus + sum(need.total.values()) / 1e4, len(need.bundles))


def spread(needs: Sequence[Need], rooms: Rooms, first: int) -> int | None:
    """Place in the given order as Ray Serve does: actors in turn on the nodes with room, groups by their strategy.

    `first` is the node whose turn it is. The index of the first replica that finds no room; None where all do.
    """
    turn = first
    for index, need in enumerate(needs):
        if need.strategy is not None:
            placed = next(placements(need, rooms), None)
            if placed is None:
                return index
            rooms = placed[1]
            continue
        for step in range(len(rooms)):
            node = (turn + step) % len(rooms)
            left = rooms[node].without(need.bundles[0])
            if left:
                rooms, turn = _replaced(rooms, node, left), node + 1
                break
        else:
            return index
    return None


def num_placeable(need: Need, others: Sequence[Need], rooms: Rooms, at_least: int, at_most: int) -> int:
    """How many such replicas find room beside the others, `at_least` of which are known to."""
    while at_least < at_most:
        middle = (at_least + at_most + 1) // 2
        if place_all([*others, *[need] * middle], rooms) is None:
            at_most = middle - 1
        else:
            at_least = middle
    return at_least


def nodes_after(nodes: Sequence[Node], needs: Sequence[Need], placed: Sequence[Placement]) -> list[Node]:
    """The nodes with what is free beside these replicas."""
    left = [dict(node.free) for node in nodes]
    for need, placement in zip(needs, placed, strict=True):
        for bundle, index in zip(need.bundles, placement, strict=True):
            for resource, amount in bundle:
                left[index][resource] = round(left[index].get(resource, 0.0) - amount, 6)
    return [replace(node, free=free) for node, free in zip(nodes, left, strict=True)]

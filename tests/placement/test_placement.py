"""Where replicas fit, and the sentence where they don't: Ray's rules as arithmetic."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.placement.packing import Need, Node, first_unplaced, nodes_with, num_placeable, pack, place, rooms_of
from serve_app.placement.packing import need_of as need
from serve_app.placement.shortage import could_ever_fit, shortage


def nodes(*given: dict[str, float]) -> list[Node]:
    return [Node("abcdefgh"[index], free, free) for index, free in enumerate(given)]


def actor(gpus: float, cpus: float = 0.0) -> Need:
    return need({"num_gpus": gpus, "num_cpus": cpus})


def group(num_gpus: int, strategy: str, cpus: float = 1.0) -> Need:
    return need({}, [{"CPU": cpus}, *[{"GPU": 1.0}] * num_gpus], strategy)


ONE_GPU, TWO_GPUS, NO_GPU = {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0}


@pytest.mark.parametrize(
    ("wanted", "given", "fits"),
    [
        (actor(1), [ONE_GPU], True),
        (actor(2), [ONE_GPU, ONE_GPU], False),
        (actor(0, 5), [NO_GPU, NO_GPU], False),
        (actor(1, 4), [NO_GPU, {"GPU": 1.0, "CPU": 2.0}], False),
        (actor(0), [{}], True),
        (group(2, "PACK"), [ONE_GPU, ONE_GPU], True),
        (group(2, "SPREAD"), [TWO_GPUS], True),
        (group(2, "STRICT_PACK"), [ONE_GPU, ONE_GPU], False),
        (group(2, "STRICT_PACK"), [NO_GPU, TWO_GPUS], True),
        (group(2, "STRICT_PACK", cpus=8), [TWO_GPUS, {"CPU": 8.0}], False),
        (group(2, "PACK", cpus=8), [TWO_GPUS, {"CPU": 8.0}], True),
        (group(2, "STRICT_SPREAD"), [ONE_GPU, ONE_GPU], False),  # the replica's own bundle wants a third node
        (group(2, "STRICT_SPREAD"), [ONE_GPU, ONE_GPU, NO_GPU], True),
        (group(8, "PACK"), [TWO_GPUS] * 4, True),
        (group(9, "PACK"), [TWO_GPUS] * 4, False),
        (need({"resources": {"TPU": 1.0}}), [ONE_GPU], False),
    ],
)
def test_one_replica(wanted: Need, given: list[dict[str, float]], fits: bool) -> None:
    assert (place(wanted, rooms_of(nodes(*given))) is not None) == fits
    assert could_ever_fit(wanted, nodes(*given)) == fits


@pytest.mark.parametrize(
    ("wanted", "given", "fits"),
    [
        ([actor(0.5)] * 4, [TWO_GPUS], True),
        ([actor(0.6)] * 3, [TWO_GPUS], False),  # 1.8 of 2 GPUs, and yet no third lies on one
        ([actor(0.4)] * 4, [TWO_GPUS], True),
        ([actor(0.7), actor(0.7), actor(0.3), actor(0.3)], [ONE_GPU, ONE_GPU], True),
        ([actor(0.3), actor(0.3), actor(0.7), actor(0.7)], [ONE_GPU, ONE_GPU], True),  # not as they come
        ([actor(1), actor(0.5), actor(0.5), actor(0.1)], [TWO_GPUS], False),
        ([actor(1), actor(1), actor(2)], [TWO_GPUS, TWO_GPUS], True),
        ([group(2, "STRICT_PACK"), group(2, "PACK")], [TWO_GPUS, ONE_GPU, ONE_GPU], True),
        ([actor(0, 3), actor(0, 3), actor(0, 2)], [NO_GPU, NO_GPU], False),
        ([], [], True),
    ],
)
def test_several_replicas(wanted: list[Need], given: list[dict[str, float]], fits: bool) -> None:
    assert (pack(wanted, rooms_of(nodes(*given))) is not None) == fits


def test_spreading_leaves_parts_where_packing_leaves_a_whole() -> None:
    wanted, rooms = [actor(1), actor(1), actor(2)], rooms_of(nodes(TWO_GPUS, TWO_GPUS))
    assert pack(wanted, rooms) is not None
    assert first_unplaced(wanted, rooms, 0) == 2
    assert first_unplaced(wanted[::-1], rooms, 0) is None


def test_how_many_more_are_reachable() -> None:
    nothing = rooms_of(nodes(TWO_GPUS, TWO_GPUS, NO_GPU))
    packed = pack([actor(0.5)], nothing)
    assert packed is not None
    assert num_placeable(actor(1), packed[1], 100) == 3
    assert num_placeable(actor(0.5), packed[1], 100) == 7
    assert num_placeable(actor(0.5), nothing, 5) == 5
    assert num_placeable(actor(4), nothing, 5) == 0


amounts = st.sampled_from([0.25, 0.5, 0.75, 1.0, 2.0])
machines = st.lists(st.integers(0, 3), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(st.lists(amounts, max_size=5), machines)
def test_what_is_placed_never_exceeds_a_node_and_greedy_success_is_found(
    wanted: list[float], gpus: list[int]
) -> None:
    given = nodes(*[{"GPU": float(n)} for n in gpus])
    needs = [actor(amount) for amount in wanted]
    packed = pack(needs, rooms_of(given))
    if packed is not None:
        for node in nodes_with(given, packed[1]):
            assert node.free["GPU"] >= 0
    elif needs:
        assert first_unplaced(needs, rooms_of(given), 0) is not None


@pytest.mark.parametrize(
    ("wanted", "given", "sentence"),
    [
        (
            group(2, "STRICT_PACK"),
            [ONE_GPU, NO_GPU],
            "needs 2 bundles of 1 GPU and 1 bundle of 1 CPU on one node (STRICT_PACK): node 'a' has 1 of 1 GPU free, "
            "node 'b' has no GPU: all nodes together don't hold it even when empty: lower tensor_parallel_size, or "
            "add nodes",
        ),
        (
            group(2, "STRICT_PACK"),
            [ONE_GPU, ONE_GPU],
            "needs 2 bundles of 1 GPU and 1 bundle of 1 CPU on one node (STRICT_PACK): node 'a' has 1 of 1 GPU free, "
            "node 'b' has 1 of 1 GPU free: no node is that large even when empty: set placement_strategy: PACK, or "
            "add a larger node",
        ),
        (
            group(2, "STRICT_SPREAD"),
            [TWO_GPUS, TWO_GPUS],
            "on 3 different nodes (STRICT_SPREAD): node 'a' has 4 of 4 CPU free and 2 of 2 GPU free, node 'b' has 4 "
            "of 4 CPU free and 2 of 2 GPU free: that many nodes with room don't exist: set placement_strategy: SPR",
        ),
        (actor(4, 2), [TWO_GPUS], "needs 4 GPU and 2 CPU on one node: node 'a' has 2 of 2 GPU free: no node is that"),
        (
            actor(1, 4),
            [NO_GPU, {"GPU": 1.0, "CPU": 2.0}],
            "node 'a' has 4 of 4 CPU free and no GPU, node 'b' has 2 of",
        ),
        (actor(1), [], "needs 1 GPU on one node: there is no node: no node is that large"),
        (actor(0, 9), [NO_GPU] * 8, "node 'f' has 4 of 4 CPU free, 2 more nodes have no more: no node is that large"),
    ],
)
def test_the_sentence_names_what_is_needed_what_there_is_and_the_fix(
    wanted: Need, given: list[dict[str, float]], sentence: str
) -> None:
    assert sentence in shortage(wanted, nodes(*given))


def test_a_full_node_says_that_something_holds_it() -> None:
    full = [Node("a", {"GPU": 1.0}, {"GPU": 0.0})]
    assert shortage(actor(1), full) == (
        "needs 1 GPU on one node: node 'a' has 0 of 1 GPU free: stop or scale down what holds it, or add a node"
    )
    assert shortage(actor(1), full, 2).endswith("; the cluster is adding 2 nodes, which may be enough")


def test_a_fraction_in_parts_says_so() -> None:
    parts = [Node("a", {"GPU": 2.0}, {"GPU": 0.8})]
    assert "node 'a' has 0.8 of 2 GPU free: what is free lies in parts" in shortage(actor(0.7), parts)


def test_a_thousand_replicas_are_placed() -> None:
    rooms = rooms_of(nodes(*[{"CPU": 64.0, "GPU": 8.0}] * 8) * 16)
    packed = pack([actor(1.0, 1.0)] * 1024, rooms)
    assert packed is not None
    assert len(packed[0]) == 1024

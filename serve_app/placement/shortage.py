"""The sentence that says why a replica finds no room: which resource, which nodes have what, and what to change.

One wording for `serve-app plan`, `/v1/models`, `serve-app status` and `serve-app up`. Pure, like `placement`.
"""

from collections import Counter
from collections.abc import Sequence

from serve_app.placement.packing import EPSILON, Bundle, Need, Node, place, rooms_of

_NUM_NODES_SHOWN = 6


def shortage(need: Need, nodes: Sequence[Node], num_nodes_coming: int = 0) -> str:
    """«needs 4 GPU on one node: node 'a' has 1 of 2 GPU free: …», with what to change."""
    sentence = f"{lack(need, nodes)}: {remedy(need, nodes)}"
    if num_nodes_coming:
        coming = "a node" if num_nodes_coming == 1 else f"{num_nodes_coming} nodes"
        sentence += f"; the cluster is adding {coming}, which may be enough"
    return sentence


def lack(need: Need, nodes: Sequence[Node]) -> str:
    """«needs 4 GPU on one node: node 'a' has 1 of 2 GPU free»."""
    return f"needs {need_text(need)}: {_free_text(need, nodes)}"


def need_text(need: Need) -> str:
    """«0.5 GPU and 2 CPU on one node», or a group's bundles and their strategy."""
    if need.strategy is None:
        return f"{_amounts(need.bundles[0])} on one node"
    counts = Counter(need.bundles)
    bundles = [f"{n} bundle{'s' if n > 1 else ''} of {_amounts(bundle)}" for bundle, n in counts.items()]
    where = {
        "STRICT_PACK": " on one node",
        "STRICT_SPREAD": f" on {len(need.bundles)} different nodes",
    }.get(need.strategy, "")
    return f"{' and '.join(reversed(bundles))}{where} ({need.strategy})"


def could_ever_fit(need: Need, nodes: Sequence[Node]) -> bool:
    """Whether the nodes could hold one such replica with nothing else on them."""
    return _fits(need, [Node(node.name, node.total, node.total) for node in nodes])


def _fits(need: Need, nodes: Sequence[Node]) -> bool:
    return place(need, rooms_of(nodes)) is not None


def _free_text(need: Need, nodes: Sequence[Node]) -> str:
    if not nodes:
        return "there is no node"
    lacking = _lacking(need, nodes)
    ranked = sorted(nodes, key=lambda node: [(-node.free.get(r, 0.0), -node.total.get(r, 0.0)) for r in lacking])
    parts = [f"node '{node.name}' has {_free_on(node, lacking)}" for node in ranked[:_NUM_NODES_SHOWN]]
    num_more = len(ranked) - len(parts)
    more = [f"{num_more} more node{'s have' if num_more > 1 else ' has'} no more"] if num_more else []
    return ", ".join([*parts, *more])


def _free_on(node: Node, resources: Sequence[str]) -> str:
    amounts = [(resource, node.free.get(resource, 0.0), node.total.get(resource, 0.0)) for resource in resources]
    return " and ".join(f"{free:.4g} of {total:.4g} {r} free" if total else f"no {r}" for r, free, total in amounts)


def _lacking(need: Need, nodes: Sequence[Node]) -> list[str]:
    """The resources of which there is too little; all that are asked for where only their combination is missing."""
    total = need.total
    if "GPU" in total and _fits(need, nodes):  # by their sums: a fraction that lies on no single GPU
        return ["GPU"]
    if need.is_on_one_node:
        most = {r: max((node.free.get(r, 0.0) for node in nodes), default=0.0) for r in total}
    else:
        most = {r: sum(node.free.get(r, 0.0) for node in nodes) for r in total}
    lacking = [resource for resource in total if most[resource] + EPSILON < total[resource]]
    return lacking or list(total)


def remedy(need: Need, nodes: Sequence[Node]) -> str:
    """What to change so that it fits."""
    if could_ever_fit(need, nodes):
        if _fits(need, nodes):
            return "what is free lies in parts, on several GPUs or only just now: free a whole one, or add a node"
        return "stop or scale down what holds it, or add a node"
    if need.strategy is not None:
        if need.strategy == "STRICT_PACK" and could_ever_fit(Need(need.bundles, "PACK"), nodes):
            return "no node is that large even when empty: set placement_strategy: PACK, or add a larger node"
        if need.strategy == "STRICT_SPREAD" and could_ever_fit(Need(need.bundles, "SPREAD"), nodes):
            return "that many nodes with room don't exist: set placement_strategy: SPREAD, or add nodes"
        return "all nodes together don't hold it even when empty: lower tensor_parallel_size, or add nodes"
    return "no node is that large even when empty: ask for less (num_gpus, num_cpus), or add a larger node"


def _amounts(bundle: Bundle) -> str:
    """«1 GPU and 2 CPU»: the scarce one first."""
    by_name = sorted(bundle, key=lambda item: (item[0] != "GPU", item[0]))
    return " and ".join(f"{amount:.4g} {resource}" for resource, amount in by_name) or "nothing"

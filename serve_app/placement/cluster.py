"""The live Ray cluster: its nodes, what was deployed on it, and which Serve replicas wait for room.

Calls block for milliseconds to seconds, so make them in a thread. The process must be connected to Ray.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger, ReplicaState
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview
from ray.util import placement_group_table

from serve_app.placement.packing import Bundle, Need, Node, need_of
from serve_app.placement.shortage import shortage

if TYPE_CHECKING:
    from ray.autoscaler.v2.schema import ClusterStatus

_ASK_TIMEOUT_S = 5
# Ray adds these to every node by itself, and no model asks for them.
_OF_RAY_ITSELF = ("node:", "object_store_memory", "memory", "accelerator_type:")
_NUM_ID_DIGITS = 6


@dataclass(frozen=True, slots=True)
class _Replica:
    """A Serve replica: what it asks for, and which nodes hold its bundles, if any do yet."""

    application: str
    need: Need
    nodes: tuple[str, ...]
    is_queued_group: bool
    started_at: float
    is_stopping: bool


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a model's args say that clients must know; empty where they leave it to the defaults."""

    tasks: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    family: str | None = None


def overviews() -> dict[str, ApplicationStatusOverview]:
    """The state of every application, as `serve.status()` has it.

    `serve.status()` builds every deployment's whole config at each call, which takes 0.4 s with 50 models. While Ray
    Serve reads new args, and for as long as it can't use them, it lists no deployment, although the replicas of the
    version before still run: this lists them.
    """
    applications = _applications()
    is_incomplete = any(not application["deployments"] for application in applications.values())
    running = _running_replicas() if is_incomplete else {}
    return {name: _overview(application, running.get(name, {})) for name, application in applications.items()}


def _running_replicas() -> dict[str, dict[str, int]]:
    """How many replicas run, by application and deployment, whatever was last deployed."""
    client = _get_global_client()
    assert client is not None, "this process is connected to Ray Serve"
    running: dict[str, dict[str, int]] = {}
    for deployment, replicas in ray.get(client._controller._all_running_replicas.remote()).items():
        if replicas:
            running.setdefault(deployment.app_name, {})[deployment.name] = len(replicas)
    return running


def _overview(application: dict[str, Any], running: Mapping[str, int]) -> ApplicationStatusOverview:
    status = ApplicationStatus(application["status"])
    deployments = {
        name: DeploymentStatusOverview(
            DeploymentStatus(deployment["status"]),
            DeploymentStatusTrigger(deployment["status_trigger"]),
            dict(Counter(ReplicaState(replica["state"]) for replica in deployment["replicas"])),
            deployment["message"],
        )
        for name, deployment in application["deployments"].items()
    }
    if not deployments and status != ApplicationStatus.DELETING:
        healthy, unspecified = DeploymentStatus.HEALTHY, DeploymentStatusTrigger.UNSPECIFIED
        deployments = {
            name: DeploymentStatusOverview(healthy, unspecified, {ReplicaState.RUNNING: num_replicas}, "")
            for name, num_replicas in running.items()
        }
    return ApplicationStatusOverview(status, application["message"], application["last_deployed_time_s"], deployments)


def unplaced() -> dict[str, str]:
    """By application: why one of its replicas isn't placed yet, «needs 4 GPU on one node: node 'a' has …».

    Only what Ray itself still queues counts: a replica whose process starts on a node has its room already.
    """
    waiting = [replica for replica in _replicas() if not replica.nodes and not replica.is_stopping]
    if not waiting:
        return {}
    status = _status()
    demands = _actor_demands(status)
    nodes = _nodes(status, {})
    num_coming = len(status.pending_nodes) + sum(launch.count for launch in status.pending_launches)
    # Of those that ask for the same, Ray gives the first room first: the last ones are those that it queues.
    waiting.sort(key=lambda replica: replica.started_at, reverse=True)
    return {
        replica.application: shortage(replica.need, nodes, num_coming)
        for replica in waiting
        if replica.is_queued_group or (replica.need.strategy is None and _takes(replica.need, demands))
    }


def live_nodes(own_applications: Collection[str]) -> list[Node]:
    """The cluster's nodes. What replicas of these applications take counts as free, for they are planned anew,

    and so does what a stopping replica of any application still takes.
    """
    freed: dict[str, Counter[str]] = {}
    for replica in _replicas():
        if replica.application in own_applications or replica.is_stopping:
            for bundle, node in zip(replica.need.bundles, replica.nodes, strict=False):
                freed.setdefault(node, Counter()).update(dict(bundle))
    return _nodes(_status(), freed)


def declarations() -> dict[str, Declaration]:
    """By application: what the args it was deployed with say of it, whether or not a replica ever ran."""
    configs = {name: app.get("deployed_app_config") or {} for name, app in _applications().items()}
    return {name: _declaration(config.get("args") or {}) for name, config in configs.items()}


def _declaration(args: dict[str, Any]) -> Declaration:
    family = args.get("family")
    return Declaration(
        _tuple(args.get("tasks")), _tuple(args.get("adapters")), None if family in (None, "auto") else str(family)
    )


def serve_timeout_s() -> float | None:
    """After how long Ray Serve itself ends a request, by the config's `http_options`; None where it never does."""
    client = _get_global_client(raise_if_no_controller_running=False)
    seconds: float | None = client.http_config.request_timeout_s if client else None
    return seconds if seconds and seconds > 0 else None


def _tuple(values: Any) -> tuple[str, ...]:
    return tuple(map(str, values)) if isinstance(values, list | tuple | dict) else ()


def _applications() -> dict[str, Any]:
    client = _get_global_client(raise_if_no_controller_running=False)
    applications: dict[str, Any] = client.get_serve_details()["applications"] if client else {}
    return applications


def _replicas() -> list[_Replica]:
    """Every replica that Serve starts or runs."""
    applications = _applications()
    groups = {group["name"]: group for group in placement_group_table().values() if group["state"] != "REMOVED"}
    return [
        _replica(name, deployment["deployment_config"], replica, groups.get(replica["actor_name"]))
        for name, application in applications.items()
        for deployment in application["deployments"].values()
        for replica in deployment["replicas"]
    ]


def _replica(name: str, config: dict[str, Any], details: dict[str, Any], group: dict[str, Any] | None) -> _Replica:
    is_stopping, started_at = details["state"] == ReplicaState.STOPPING, details["start_time_s"]
    if group is None:
        need = need_of(config.get("ray_actor_options") or {})
        node = details.get("node_id")
        return _Replica(name, need, (node,) if node else (), False, started_at, is_stopping)
    order = sorted(group["bundles"])
    need = need_of({}, [group["bundles"][index] for index in order], group["strategy"])
    is_placed = group["state"] == "CREATED"
    nodes = tuple(group["bundles_to_node_id"][index] for index in order) if is_placed else ()
    return _Replica(name, need, nodes, group["state"] == "PENDING", started_at, is_stopping)


def _status() -> "ClusterStatus":
    from ray.autoscaler.v2.sdk import get_cluster_status  # half a second, which no model's replica should pay

    return get_cluster_status(ray.get_runtime_context().gcs_address, timeout=_ASK_TIMEOUT_S)


def _actor_demands(status: "ClusterStatus") -> list[Bundle]:
    """What Ray queues for want of room, one for each actor."""
    return [
        tuple(sorted(by.bundle.items()))
        for demand in status.resource_demands.ray_task_actor_demand
        for by in demand.bundles_by_count
        for _ in range(by.count)
    ]


def _takes(need: Need, demands: list[Bundle]) -> bool:
    """Whether a demand is this need's; it is then no other's."""
    index = next((i for i, demand in enumerate(demands) if _are_alike(need.bundles[0], demand)), None)
    if index is not None:
        del demands[index]
    return index is not None


def _are_alike(bundle: Bundle, demand: Bundle) -> bool:
    """Equal but for Ray's rounding to ten-thousandths."""
    return [r for r, _ in bundle] == [r for r, _ in demand] and all(
        abs(mine - theirs) < 1.5e-4 for (_, mine), (_, theirs) in zip(bundle, demand, strict=True)
    )


def _nodes(status: "ClusterStatus", freed: Mapping[str, Mapping[str, float]]) -> list[Node]:
    names = {node["NodeID"]: str(node["NodeName"]) for node in ray.nodes()}
    nodes = []
    for info in [*status.active_nodes, *status.idle_nodes]:
        usage = [u for u in (info.resource_usage.usage if info.resource_usage else []) if _is_plain(u.resource_name)]
        on_node = freed.get(info.node_id, {})
        free = {u.resource_name: max(0.0, u.total - u.used) + on_node.get(u.resource_name, 0.0) for u in usage}
        name = names.get(info.node_id) or str(info.ip_address)
        if list(names.values()).count(name) > 1:  # several on one machine
            name += f"/{info.node_id[:_NUM_ID_DIGITS]}"
        nodes.append(Node(name, {u.resource_name: u.total for u in usage}, free))
    return sorted(nodes, key=lambda node: node.name)


def _is_plain(resource: str) -> bool:
    """Whether it is a resource that is asked for by name, and not a placement group's copy of one."""
    return "_group_" not in resource and not resource.startswith(_OF_RAY_ITSELF)

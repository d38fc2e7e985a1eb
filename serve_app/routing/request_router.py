"""Chooses a replica among a model's own, inside Ray Serve's handle: by cache first, with bounded imbalance.

Source of the interface: Ray Serve's custom request routers (`ray.serve.request_router`). Ray's retries, capacity
checks and queues stay Ray's.
"""

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from serve_app.cache_keys import cache_keys
from serve_app.messages import GenerationRequest
from serve_app.routing.affinity import Placements


class AffinityRouter(RequestRouter):  # type: ignore[misc] # untyped in Ray
    """A request goes where its image or its conversation went before, unless that replica is too busy."""

    def initialize_state(self, **settings: Any) -> None:
        """`settings` are those of `Placements`."""
        self._placements: Placements[ReplicaID] = Placements(**settings)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Every candidate in a rank of its own, so that Ray tries the next where one is full."""
        replicas = {replica.replica_id: replica for replica in candidate_replicas}
        in_flight = {identity: self.replica_queue_len_cache.get(identity) or 0 for identity in replicas}
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
        if len(replicas) < 2:
            return [candidate_replicas]
        ranked = self._placements.rank(_keys(pending_request), in_flight)
        return [[replicas[identity]] for identity in ranked]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        if len(self.curr_replicas) > 1:
            self._placements.remember(_keys(pending_request), replica_id)


def _keys(pending_request: PendingRequest | None) -> list[bytes]:
    if pending_request is None:
        return []
    return next(
        (cache_keys(argument) for argument in pending_request.args if isinstance(argument, GenerationRequest)), []
    )

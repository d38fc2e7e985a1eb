"""How many replicas a model wants, by the pressure on its engines. Ray Serve's controller calls the policy.

Ray Serve's own policy counts requests; this one adds what the engines say of themselves (`Replica.pressure`), and
the greatest need decides. Imports nothing of this package: the controller unpickles it.
"""

import math
from typing import Any

WAITING_TOKENS = "waiting_tokens"
KV_CACHE_USE = "kv_cache_use"
TIME_TO_FIRST_TOKEN = "time_to_first_token_s"
# What waits in the ingresses, which Ray Serve can't see: each replica repeats the same of all of them.
INGRESS_REQUESTS = "requests_in_ingresses"
INGRESS_TOKENS = "waiting_tokens_in_ingresses"

_SLACK = 0.9  # a replica less must leave each measure this far below its target, or it would come back at once


class EnginePressurePolicy:
    """Replicas such that requests, waiting tokens and cache use per replica stay at their targets.

    `targets` holds any of the first three names above; requests have Ray Serve's own target. More replicas share
    requests, tokens and cache among them, so those scale in proportion, both ways. The time to first token doesn't:
    above its target it asks for one replica more, and between half the target and the target it lets none go.

    Source of the interface: Ray Serve's custom autoscaling policies, `ray.serve.config.AutoscalingContext`.
    """

    def __init__(self, targets: dict[str, float]) -> None:
        self._targets = targets

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The wanted number of replicas, before Ray Serve applies its delays and bounds, and no state."""
        num_replicas = context.current_num_replicas
        if num_replicas == 0:  # Ray Serve wakes one at the first request, before it asks
            return context.target_num_replicas, {}
        num_requests = context.total_num_requests + self._in_ingresses(context, INGRESS_REQUESTS)
        need = num_requests / context.config.get_target_ongoing_requests()
        need = max(
            need, sum(self._shares(context, KV_CACHE_USE))
        )  # a replica without a report is new, and has little
        if WAITING_TOKENS in self._targets:
            ahead = self._in_ingresses(context, INGRESS_TOKENS) / self._targets[WAITING_TOKENS]
            need = max(need, sum(self._shares(context, WAITING_TOKENS)) + ahead)
        target = self._without_flapping(need, num_replicas)
        late = self._shares(context, TIME_TO_FIRST_TOKEN)
        lateness = sum(late) / len(late) if late else 0.0
        if lateness > 1:
            target = max(target, num_replicas + 1)
        elif lateness > 0.5:
            target = max(target, num_replicas)
        return target, {}

    @staticmethod
    def _in_ingresses(context: Any, name: str) -> float:
        """The greatest of the replicas' reports: a new replica doesn't know yet what waited lately."""
        return max(((context.aggregated_metrics or {}).get(name) or {}).values(), default=0.0)

    def _shares(self, context: Any, name: str) -> list[float]:
        """Each replica's measure as a share of its target; none without a target or without reports."""
        reports = (context.aggregated_metrics or {}).get(name) if name in self._targets else None
        return [value / self._targets[name] for value in (reports or {}).values()]

    @staticmethod
    def _without_flapping(need: float, num_replicas: int) -> int:
        target = math.ceil(need)
        return min(num_replicas, math.ceil(need / _SLACK)) if target < num_replicas else target

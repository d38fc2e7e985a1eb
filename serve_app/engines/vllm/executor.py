"""vLLM's Ray executor, but that its engine core ends when a rank dies."""

import os
from collections.abc import Callable

from vllm.v1.executor.ray_executor_v2 import RayExecutorV2


class RankExecutor(RayExecutorV2):
    """Runs one worker in each GPU bundle of the replica's placement group.

    vLLM's own sees a rank die within seconds and tells its core by a message that is read between two steps. A step
    that waits for a rank on another node doesn't end by then, but at vLLM's time limit of 5 minutes, and the core
    counts as healthy until then. So here the core's process ends, and Ray ends the ranks that are left with it.
    """

    def register_failure_callback(self, callback: Callable[[], None]) -> None:
        super().register_failure_callback(_end_engine_core)


def _end_engine_core() -> None:
    os._exit(1)

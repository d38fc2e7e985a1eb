"""vLLM's Ray executor, changed so that the engine core ends when a rank dies."""

import os
from collections.abc import Callable

from vllm.v1.executor.ray_executor_v2 import RayExecutorV2


class RankExecutor(RayExecutorV2):
    """Runs one worker in each GPU bundle of the replica's placement group.

    vLLM's own executor notices within seconds that a rank died, but its core reads that message only between two
    steps. A step that waits for a rank on another node ends at vLLM's time limit of 5 minutes, and until then the
    core counts as healthy. So the core's process ends here, and Ray ends the remaining ranks with it.
    """

    def register_failure_callback(self, callback: Callable[[], None]) -> None:
        super().register_failure_callback(_end_engine_core)


def _end_engine_core() -> None:
    os._exit(1)

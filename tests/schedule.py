"""Which tests run in one process where pytest has several (`-n`), and which of them start first."""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# What these files share is started once, and never beside another of its kind: an engine of vLLM takes every core.
# The groups that take longest stand first.
GROUPS = {
    "tests/deployments/test_pipeline_parallel.py": "vllm",
    "tests/deployments/test_tensor_parallel.py": "vllm",
    "tests/engines/test_both_engines.py": "vllm",
    "tests/engines/vllm/test_engine.py": "vllm",
    "tests/engines/vllm/test_failures.py": "vllm",
    "tests/engines/vllm/test_service.py": "vllm",
    "tests/cli/test_service.py": "cluster",
    "tests/deployments/test_direct_lane.py": "cluster",
    "tests/deployments/test_faults.py": "cluster",
    "tests/deployments/test_load.py": "cluster",
    "tests/dialects/captions/test_captions.py": "cluster",
    "tests/dialects/openai/test_chat.py": "cluster",
    "tests/dialects/test_bad_input.py": "cluster",
    "tests/metrics/test_service.py": "cluster",
    "tests/test_docs.py": "cluster",
}
_RANKS = {"vllm": 0, "cluster": 1, "haproxy": 2}
_MARKS = ("slow", "cluster", "engine")


class GroupScheduling(LoadScopeScheduling):
    """Gives each process whole groups of tests, in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def group(nodeid: str) -> str:
    """The test's group: that of its file above, or the file itself."""
    if "[haproxy" in nodeid:
        return "haproxy"  # two clusters with HAProxy on one host collide
    file = nodeid.partition("::")[0]
    return GROUPS.get(file, file)


def sort(items: list[pytest.Item]) -> None:
    """Put the groups first that take longest, so that the short ones fill every process to the end."""
    ranks: dict[str, int] = {}
    for item in items:
        name = group(item.nodeid)
        ranks[name] = min(ranks.get(name, 9), _rank(item, name))
    items.sort(key=lambda item: ranks[group(item.nodeid)])


def _rank(item: pytest.Item, group: str) -> int:
    marks = (index for index, mark in enumerate(_MARKS) if item.get_closest_marker(mark))
    return _RANKS.get(group, len(_RANKS) + next(marks, len(_MARKS)))

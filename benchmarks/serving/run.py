"""The whole run: block by block, round by round, system after system; what is done already is left as it is."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.serving.blocks import Plan, Turn
from benchmarks.serving.cells import Cell, CellStore, Key
from benchmarks.serving.checkpoints import demo_model, prompts, tiny_text_model
from benchmarks.serving.deployment import Deployment, deployed
from benchmarks.serving.images import shelf
from benchmarks.serving.measuring import Tools, measure
from benchmarks.serving.public_client import PublicClient
from benchmarks.serving.systems import IMAGE_PORT, PEERS
from benchmarks.serving.workloads import CAPTIONER, CHAT, OTHER_CHAT

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Folders:
    """Where a run keeps its things: what can be made again apart from what was measured."""

    out: Path

    @property
    def logs(self) -> Path:
        return self.out / "logs"

    @property
    def timestamps(self) -> Path:
        return self.out / "timestamps"

    @property
    def models(self) -> Path:
        return PEERS / "models"

    @property
    def images(self) -> Path:
        return PEERS / "images"


def run(plans: Sequence[Plan], store: CellStore, folders: Folders, say: Say) -> None:
    """Measure what the store doesn't have yet. Ctrl-C ends all that was started and keeps what was measured."""
    plans = [plan for plan in plans if _open_turns(plan, store)]
    if not plans:
        say("everything is measured already: --fresh starts anew")
        return
    text_model = tiny_text_model(folders.models / "tiny-text")
    prompts_file = folders.models / "prompts.jsonl"
    prompts_file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts()))
    client = PublicClient(folders.logs / "vllm-bench-serve.log")
    try:
        with shelf(folders.images, IMAGE_PORT) as images:
            tools = Tools(client, prompts(), prompts_file, text_model, images, folders.timestamps)
            checkpoints = {CHAT: text_model, OTHER_CHAT: text_model, CAPTIONER: demo_model()}
            for plan in plans:
                say(f"block {plan.block.name}: starting {', '.join(system.name for system in plan.systems)}")
                client.start()
                with deployed(plan, checkpoints, folders.logs, [urlsplit(images.url).netloc], say) as deployment:
                    _run_block(plan, deployment, tools, store, say)
    finally:
        client.stop()


def _open_turns(plan: Plan, store: CellStore) -> list[Turn]:
    return [
        turn
        for turn in plan.turns()
        if not store.has_group(plan.block.name, turn.workload.name, turn.round, [s.name for s in turn.systems])
    ]


def _run_block(plan: Plan, deployment: Deployment, tools: Tools, store: CellStore, say: Say) -> None:
    deployment.watch_at_rest(plan.systems)
    for turn in _open_turns(plan, store):
        for system in turn.systems:
            key = Key(plan.block.name, turn.workload.name, turn.round, system.name)
            begun = time.monotonic()
            cell = measure(tools, deployment, key, system, turn.workload, store)
            store.add(cell)
            say(f"{turn.workload.name} round {turn.round}/{plan.rounds} {system.name}: {_outcome(cell)}"
                f" ({time.monotonic() - begun:.0f} s)")  # fmt: skip


def _outcome(cell: Cell) -> str:
    if cell.failure is not None:
        return cell.failure.splitlines()[0][:200]
    told = cell.statistics
    failed = f", {told['num_failed']} FAILED {told['failures']}" if told["num_failed"] else ""
    return f"{told['tokens_per_s']:.0f} tokens/s, {told['requests_per_s']:.1f} requests/s{failed}"

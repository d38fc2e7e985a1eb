"""From a checked command line to a finished run: opens the output and the client, runs, and sums up."""

import asyncio
import sys
from contextlib import closing
from dataclasses import dataclass, field

from serve_app.cli.captioning.inputs.walk import ImageWalk, Inputs
from serve_app.cli.captioning.outputs.output import Output
from serve_app.cli.captioning.outputs.target import Target
from serve_app.cli.captioning.pace import Pace
from serve_app.cli.captioning.progress import RunProgress
from serve_app.cli.captioning.request import CaptionRequest
from serve_app.cli.captioning.run import CaptionRun
from serve_app.cli.captioning.together import MOST_TOGETHER, Together
from serve_app.cli.errors import FAILED, USAGE, CliError
from serve_app.client.api import ApiClient
from serve_app.client.errors import ServiceError

BUSY_PATIENCE_S = 1800.0  # a large model may take this long to load
# Images on their way, where the command doesn't say how many. A slow model's queue would outlast its deadlines.
NUM_AT_FIRST, MOST_AT_ONCE = 16, 64


@dataclass(frozen=True, slots=True)
class Session:
    """One `serve-app caption`."""

    url: str
    api_key: str | None = field(repr=False)
    inputs: Inputs
    request: CaptionRequest
    target: Target
    concurrency: int | None
    limit: int | None
    patience_s: float
    together: int = MOST_TOGETHER
    is_retrying: bool = False
    is_only_retrying: bool = False
    page_of: str | None = None  # the output whose gallery is written at the end

    def run(self) -> int:
        """The exit code. Raises `CliError` where the run can't begin or go on."""
        progress = RunProgress(self.limit)
        walk, counted = ImageWalk(self.inputs), ImageWalk(self.inputs, is_counting=True)
        output = self.target.open(
            self.request.settings, self.request.max_tokens, self.inputs.arguments, self.inputs.is_single, progress.say
        )
        with closing(output):
            try:
                signal_number = asyncio.run(self._caption_all(output, progress, walk, counted))
            finally:
                self._sum_up(progress, walk)
        if self.page_of is not None and not progress.sees_nothing:
            from serve_app.cli.captioning.gallery import write_page

            progress.say(write_page(self.page_of))
        if signal_number is not None:
            progress.say(f"Stopped: {self.target.how_to_continue}")
            return 128 + signal_number
        if progress.sees_nothing:
            raise CliError(f"No images there. {walk.passed_over}".strip(), USAGE)
        return FAILED if progress.results.num_failed + progress.num_failed_before + progress.num_not_tried else 0

    async def _caption_all(
        self, output: Output, progress: RunProgress, walk: ImageWalk, counted: ImageWalk
    ) -> int | None:
        """Runs, and returns the signal that ended it, if one did."""
        concurrency = self.concurrency or MOST_AT_ONCE
        pace = Pace(self.patience_s, BUSY_PATIENCE_S, progress.say)
        async with ApiClient(self.url, self.api_key, num_connections=concurrency) as client:
            await _greet(client)
            service = Together(client, 1 if self.inputs.is_single else min(self.together, concurrency))
            run = CaptionRun(
                service, self.request, output, pace, progress,
                concurrency=concurrency, limit=self.limit, is_retrying=self.is_retrying,
                is_only_retrying=self.is_only_retrying,
                num_at_first=NUM_AT_FIRST if self.concurrency is None else None,
            )  # fmt: skip
            with progress.shown(self.target.is_kept or not sys.stdout.isatty()):
                try:
                    await run.run(walk, counted)
                finally:
                    await service.close()
        return run.signal_number

    def _sum_up(self, progress: RunProgress, walk: ImageWalk) -> None:
        if progress.sees_nothing:
            return
        results, same = progress.results, self.request.same
        counts = (
            (results.num_captioned, "captioned"),
            (results.num_failed, f"failed{self.target.where_failures_stand}"),
            (progress.num_not_tried, "not tried, their folders can't be written"),
            (same.num_same if same else 0, "of them the same as another"),
            (same.num_near if same else 0, "of them nearly the same as another"),
            (results.num_cut, f"cut short{self._how_to_lengthen}"),
            (progress.num_done_before, "done before"),
            (progress.num_left, "new ones left"),
            (progress.num_failed_before, "failed before (--retry-failed tries them again)"),
        )
        parts = [f"{n:,} {what}" for n, what in counts if n or what == "captioned"]
        if walk.passed_over:
            parts.append(walk.passed_over)
        if self.target.is_kept or not self.inputs.is_single or results.num_cut:
            progress.say("; ".join(parts))
        if self.target.is_kept and results.num_captioned + results.num_failed > 1:
            progress.say(progress.report)

    @property
    def _how_to_lengthen(self) -> str:
        if self.request.max_tokens is None or self.target.kind in ("tars", "dataset"):
            return " (--max-tokens allows more)"
        return f" at {self.request.max_tokens} tokens (a larger --max-tokens asks again)"


async def _greet(client: ApiClient) -> None:
    """Find out before the first image whether the address and the key are right; a busy service will do."""
    try:
        await client.get("/v1/models")
    except ServiceError as error:
        if error.status is None or not (error.status == 429 or error.status >= 500):
            raise

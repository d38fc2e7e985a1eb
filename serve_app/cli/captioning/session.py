"""From a checked command line to a finished run: opens the output and the client, runs, and sums up."""

import asyncio
import os
import sys
from contextlib import closing
from dataclasses import dataclass, field

from serve_app.cli.captioning import outputs
from serve_app.cli.captioning.images import ImageWalk, first_folder
from serve_app.cli.captioning.pace import Pace
from serve_app.cli.captioning.progress import RunProgress
from serve_app.cli.captioning.request import CaptionRequest
from serve_app.cli.captioning.run import CaptionRun
from serve_app.cli.errors import FAILED, USAGE, CliError
from serve_app.client.api import ApiClient
from serve_app.client.errors import ServiceError

BUSY_PATIENCE_S = 1800.0  # a large model may take this long to load


@dataclass(frozen=True, slots=True)
class Session:
    """One `serve-app caption`. `kind` is `printed`, `txt` or `rows`; `output` the latter's file."""

    url: str
    api_key: str | None = field(repr=False)
    images: list[str]
    is_recursive: bool
    request: CaptionRequest
    kind: str
    output: str | None
    is_overwriting: bool
    is_retrying: bool
    concurrency: int
    limit: int | None
    patience_s: float

    def run(self) -> int:
        """The exit code. Raises `CliError` where the run can't begin or go on."""
        progress = RunProgress(self.limit)
        walk, counted = self._walk(), self._walk()
        with closing(self._open_output(progress)) as output:
            try:
                signal_number = asyncio.run(self._caption_all(output, progress, walk, counted))
            finally:
                self._sum_up(progress, walk)
        if signal_number is not None:
            where = "run the same command again to continue" if self.output else "nothing was kept: use --output"
            progress.say(f"Stopped: {where}")
            return 128 + signal_number
        if progress.sees_nothing:
            raise CliError(f"No images there. {walk.passed_over}".strip(), USAGE)
        return FAILED if progress.num_failed + progress.num_failed_before else 0

    def _walk(self) -> ImageWalk:
        return ImageWalk(self.images, self.is_recursive)

    def _open_output(self, progress: RunProgress) -> outputs.Output:
        settings = self.request.settings
        if self.kind == "txt":
            return outputs.TextFiles(first_folder(self.images), settings, self.is_overwriting)
        if self.output is None:
            return outputs.Printed(self._is_single, progress.say)
        ledger = outputs.Ledger(self.output, settings, self.is_overwriting)
        if ledger.num_bad_records:
            progress.say(f"{self.output}: {ledger.num_bad_records} rows can't be read and don't count as done")
        return ledger

    @property
    def _is_single(self) -> bool:
        return len(self.images) == 1 and os.path.isfile(self.images[0])

    async def _caption_all(
        self, output: outputs.Output, progress: RunProgress, walk: ImageWalk, counted: ImageWalk
    ) -> int | None:
        """Runs, and returns the signal that ended it, if one did."""
        pace = Pace(self.patience_s, BUSY_PATIENCE_S, progress.say)
        async with ApiClient(self.url, self.api_key, num_connections=self.concurrency) as client:
            await _greet(client)
            run = CaptionRun(
                client, self.request, output, pace, progress,
                concurrency=self.concurrency, limit=self.limit, is_retrying=self.is_retrying,
            )  # fmt: skip
            with progress.shown(self.output is not None or not sys.stdout.isatty()):
                await run.run(walk, counted)
        return run.signal_number

    def _sum_up(self, progress: RunProgress, walk: ImageWalk) -> None:
        if progress.sees_nothing:
            return
        parts = [f"{progress.num_captioned:,} captioned"]
        if progress.num_failed:
            parts.append(f"{progress.num_failed:,} failed{self._where_failures_stand()}")
        if progress.num_done_before:
            parts.append(f"{progress.num_done_before:,} done before")
        if progress.num_failed_before:
            parts.append(f"{progress.num_failed_before:,} failed before (--retry-failed tries them again)")
        if walk.passed_over:
            parts.append(walk.passed_over)
        if not (self._is_single and self.output is None):
            progress.say("; ".join(parts))

    def _where_failures_stand(self) -> str:
        if self.kind == "txt":
            return f" (reasons in {os.path.join(first_folder(self.images), outputs.FAILURES_NAME)})"
        return f" (reasons in {self.output})" if self.output else ""


async def _greet(client: ApiClient) -> None:
    """Find out before the first image whether the address and the key are right; a busy service will do."""
    try:
        await client.get("/v1/models")
    except ServiceError as error:
        if error.status is None or not (error.status == 429 or error.status >= 500):
            raise

"""From a checked command line to a finished run: opens the output and the client, runs, and sums up."""

import asyncio
import os
import sys
from contextlib import closing
from dataclasses import dataclass, field

from serve_app.cli.captioning.images import LEDGER_NAME, FileList, ImageWalk, is_address
from serve_app.cli.captioning.ledger import Ledger
from serve_app.cli.captioning.pace import Pace
from serve_app.cli.captioning.printed import Printed
from serve_app.cli.captioning.progress import RunProgress
from serve_app.cli.captioning.request import CaptionRequest
from serve_app.cli.captioning.run import CaptionRun, Output
from serve_app.cli.captioning.text_files import Adding, TextFiles
from serve_app.cli.errors import FAILED, USAGE, CliError
from serve_app.client.api import ApiClient
from serve_app.client.errors import ServiceError

BUSY_PATIENCE_S = 1800.0  # a large model may take this long to load


@dataclass(frozen=True, slots=True)
class Session:
    """One `serve-app caption`.

    `kind` is `printed` (captions on stdout), `stream` (rows on stdout), `txt`, or `rows`, whose file is `output`.
    """

    url: str
    api_key: str | None = field(repr=False)
    images: list[str]
    listed: FileList | None
    excluded: list[str]
    is_recursive: bool
    request: CaptionRequest
    kind: str
    output: str | None
    is_overwriting: bool
    is_retrying: bool
    concurrency: int
    limit: int | None
    patience_s: float
    text_extension: str = ".txt"
    fills_empty: bool = False
    adding: Adding | None = None
    is_only_retrying: bool = False
    texts_in: str | None = None

    def run(self) -> int:
        """The exit code. Raises `CliError` where the run can't begin or go on."""
        progress = RunProgress(self.limit)
        walk, counted = self._walk(), self._walk(is_counting=True)
        with closing(self._open_output(progress)) as output:
            try:
                signal_number = asyncio.run(self._caption_all(output, progress, walk, counted))
            finally:
                self._sum_up(progress, walk)
        if signal_number is not None:
            progress.say(f"Stopped: {self._how_to_continue}")
            return 128 + signal_number
        if progress.sees_nothing:
            raise CliError(f"No images there. {walk.passed_over}".strip(), USAGE)
        return FAILED if progress.num_failed + progress.num_failed_before + progress.num_not_tried else 0

    @property
    def _is_kept(self) -> bool:
        return self.kind in ("txt", "rows")

    @property
    def _how_to_continue(self) -> str:
        if not self._is_kept:
            return "nothing was kept: use --output FILE.jsonl"
        if self.is_overwriting:
            anew = "with --overwrite it begins anew"
            return anew if self.kind == "txt" else f"run it without --overwrite to continue; {anew}"
        return "run the same command again to continue"

    def _walk(self, is_counting: bool = False) -> ImageWalk:
        return ImageWalk(self.images, self.is_recursive, self.excluded, self.listed, is_counting)

    def _open_output(self, progress: RunProgress) -> Output:
        settings, max_tokens = self.request.settings, self.request.max_tokens
        if self.kind == "txt":
            return TextFiles(
                settings, max_tokens, is_overwriting=self.is_overwriting, is_retrying=self.is_retrying,
                extension=self.text_extension, fills_empty=self.fills_empty, adding=self.adding,
                into=(self._top, self.texts_in) if self.texts_in else None,
            )  # fmt: skip
        if self.kind != "rows" or self.output is None:
            if self.kind == "stream":
                return Printed("rows", progress.say)
            return Printed("caption" if self._is_single else "lines", progress.say)
        ledger = Ledger(self.output, settings, max_tokens, self.is_overwriting)
        if ledger.num_bad_records:
            progress.say(f"{self.output}: {ledger.num_bad_records} rows can't be read and don't count as done")
        return ledger

    @property
    def _top(self) -> str:
        """The real path of the folder that has all images below it."""
        folders = [os.path.realpath(path if os.path.isdir(path) else os.path.dirname(path)) for path in self.images]
        return os.path.commonpath(folders)

    @property
    def _is_single(self) -> bool:
        if self.listed or len(self.images) != 1:
            return False
        return is_address(self.images[0]) or os.path.isfile(self.images[0])

    async def _caption_all(
        self, output: Output, progress: RunProgress, walk: ImageWalk, counted: ImageWalk
    ) -> int | None:
        """Runs, and returns the signal that ended it, if one did."""
        pace = Pace(self.patience_s, BUSY_PATIENCE_S, progress.say)
        async with ApiClient(self.url, self.api_key, num_connections=self.concurrency) as client:
            await _greet(client)
            run = CaptionRun(
                client, self.request, output, pace, progress,
                concurrency=self.concurrency, limit=self.limit, is_retrying=self.is_retrying,
                is_only_retrying=self.is_only_retrying,
            )  # fmt: skip
            with progress.shown(self._is_kept or not sys.stdout.isatty()):
                await run.run(walk, counted)
        return run.signal_number

    def _sum_up(self, progress: RunProgress, walk: ImageWalk) -> None:
        if progress.sees_nothing:
            return
        parts = [f"{progress.num_captioned:,} captioned"]
        if progress.num_failed:
            parts.append(f"{progress.num_failed:,} failed{self._where_failures_stand()}")
        if progress.num_not_tried:
            parts.append(f"{progress.num_not_tried:,} not tried, their folders can't be written")
        if self.request.same and self.request.same.num_same:
            parts.append(f"{self.request.same.num_same:,} of them the same as another")
        if progress.num_cut:
            parts.append(f"{progress.num_cut:,} cut short{self._how_to_lengthen}")
        if progress.num_done_before:
            parts.append(f"{progress.num_done_before:,} done before")
        if progress.num_left:
            parts.append(f"{progress.num_left:,} new ones left")
        if progress.num_failed_before:
            parts.append(f"{progress.num_failed_before:,} failed before (--retry-failed tries them again)")
        if walk.passed_over:
            parts.append(walk.passed_over)
        if self._is_kept or not self._is_single or progress.num_cut:
            progress.say("; ".join(parts))
        if self._is_kept and progress.num_captioned + progress.num_failed > 1:
            progress.say(progress.report)

    @property
    def _how_to_lengthen(self) -> str:
        if self.request.max_tokens is None:
            return " (--max-tokens allows more)"
        return f" at {self.request.max_tokens} tokens (a larger --max-tokens asks again)"

    def _where_failures_stand(self) -> str:
        if self.kind == "txt":
            return f" (reasons in {LEDGER_NAME} beside the images)"
        return f" (reasons in {self.output})" if self.kind == "rows" else ""


async def _greet(client: ApiClient) -> None:
    """Find out before the first image whether the address and the key are right; a busy service will do."""
    try:
        await client.get("/v1/models")
    except ServiceError as error:
        if error.status is None or not (error.status == 429 or error.status >= 500):
            raise

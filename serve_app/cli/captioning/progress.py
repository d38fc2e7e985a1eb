"""How far a run is: a bar on a terminal, a plain line now and then anywhere else; both on stderr."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from serve_app.cli.captioning.outputs.rows import Row
from serve_app.cli.captioning.report import Report
from serve_app.cli.terminal import printable

PLAIN_LINE_EVERY_S = 15.0
RATE_WINDOW_S = 60.0


class RunProgress:
    """Counts of one run. `num_found` is every image there is, None until they are counted."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self.results = Report()
        self.num_done_before = 0
        self.num_failed_before = 0
        self.num_not_tried = 0
        self.num_left = 0  # new ones, where only failed ones are tried
        self.num_found: int | None = None
        self._begun_at = time.monotonic()
        self._recent: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._next_line_at = time.monotonic() + PLAIN_LINE_EVERY_S
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None

    @contextmanager
    def shown(self, is_bar_wanted: bool) -> Iterator[None]:
        """Show a bar meanwhile, where stderr is a terminal."""
        if not (is_bar_wanted and self._console.is_terminal):
            yield
            return
        columns = (TextColumn("captioning"), BarColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=self._console, refresh_per_second=4, transient=True) as self._bar:
            self._bar.add_task(self.sentence, total=None)
            yield
        self._bar = None

    def count(self, row: Row) -> None:
        """Take in an image's result, and show the counts as they are now."""
        self.results.count(row)
        self.advance()

    def advance(self) -> None:
        """Show the counts as they are now."""
        now = time.monotonic()
        if now - self._recent[-1][0] >= 1:
            self._recent.append((now, self._num_now))
            while now - self._recent[0][0] > RATE_WINDOW_S:
                self._recent.popleft()
        if self._bar:
            task_id = self._bar.task_ids[0]
            completed = self._num_completed
            self._bar.update(task_id, total=self._num_total, completed=completed, description=self.sentence)
        elif now >= self._next_line_at:
            self._next_line_at = now + PLAIN_LINE_EVERY_S
            self.say(self.sentence)

    def say(self, text: str) -> None:
        """A line of its own, above the bar if there is one."""
        text = printable(text)
        if self._bar:
            self._bar.console.print(Text(text))
        else:
            print(text, file=sys.stderr, flush=True)

    @property
    def sees_nothing(self) -> bool:
        """Whether no image has come up, in this run or an earlier one."""
        return self._num_completed == 0

    @property
    def sentence(self) -> str:
        """«1,200 of 50,000 · 12.5/s · 1:05:04 left · 3 failed»."""
        total = "?" if self._num_total is None else f"{self._num_total:,}"
        parts = [f"{self._num_completed:,} of {total}", f"{self._rate:.1f}/s"]
        if self._num_total is not None and self._rate > 0:
            seconds = max(0, round((self._num_total - self._num_completed) / self._rate))
            parts.append(f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left")
        return " · ".join([*parts, f"{self.results.num_failed:,} failed"])

    def say_all(self) -> None:
        """Where the run is, at once and in full."""
        self.say(self.sentence)
        self.say(self.report)

    @property
    def report(self) -> str:
        """«12.5 captions/s · 5,312 tokens · failed: 2 invalid_image …»."""
        seconds = max(time.monotonic() - self._begun_at, 0.001)
        return " · ".join([f"{self.results.num_captioned / seconds:.1f} captions/s", *self.results.parts()])

    @property
    def _num_now(self) -> int:
        return self.results.num_captioned + self.results.num_failed

    @property
    def _num_completed(self) -> int:
        return self._num_now + self.num_done_before + self.num_failed_before + self.num_not_tried + self.num_left

    @property
    def _num_total(self) -> int | None:
        if self.num_found is None or self._limit is None:
            return self.num_found
        return min(self.num_found, self._limit + self._num_completed - self._num_now)

    @property
    def _rate(self) -> float:
        since, num = self._recent[0]
        return (self._num_now - num) / max(time.monotonic() - since, 0.001)

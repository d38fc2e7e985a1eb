"""The guard: checks a caption, retries a bounded number of times, and reports its findings.

Each further attempt has another seed and at least some temperature, and against loops a penalty on repetition. The
first attempt without a finding is the caption; where all have some, the one with the mildest.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from serve_app.dialects.captions.answer import CaptionPrompt
from serve_app.dialects.captions.fields import Guard
from serve_app.dialects.captions.quality import FINDINGS, Finding, Sight, findings
from serve_app.errors import ServeAppError
from serve_app.families.wish import Words
from serve_app.messages import Chunk, Sampling

_OF_ANY_FORM: frozenset[Finding] = frozenset({"empty", "loop", "truncated"})
_TEMPERATURE_STEP = 0.2
_PENALTY_STEP = 0.1
_LONG = 20_000  # characters: checking more takes some 10 ms, too long for the event loop

Ask = Callable[[int, Sampling], Awaitable[Chunk]]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One answer, what is wrong with it, and how its sampling differed from the first attempt's."""

    chunk: Chunk
    findings: tuple[Finding, ...]
    changes: dict[str, float | int]

    @property
    def badness(self) -> tuple[int, ...]:
        """The worst finding first: the milder, the smaller."""
        return tuple(len(FINDINGS) - FINDINGS.index(name) for name in self.findings)

    def as_json(self) -> dict[str, Any]:
        return {"findings": list(self.findings)} | ({"changes": self.changes} if self.changes else {})


@dataclass(frozen=True, slots=True)
class Guarded:
    """All attempts, and which of them became the caption. `stopped`: why there were no more, where it had to stop."""

    attempts: tuple[Attempt, ...]
    checks: tuple[Finding, ...]
    stopped: str | None

    @property
    def chosen(self) -> int:
        return min(range(len(self.attempts)), key=lambda index: self.attempts[index].badness)

    @property
    def chunks(self) -> list[Chunk]:
        return [attempt.chunk for attempt in self.attempts]

    def report(self) -> dict[str, Any]:
        best = self.attempts[self.chosen]
        report: dict[str, Any] = {
            "passed": not best.findings,
            "findings": list(best.findings),
            "checks": list(self.checks),
            "chosen": self.chosen,
            "attempts": [attempt.as_json() for attempt in self.attempts],
        }
        return report | ({"stopped": self.stopped} if self.stopped else {})


class CaptionGuard:
    """Guards the captions of one request. `words` has the language and form that it asked for, if it is known."""

    def __init__(self, guard: Guard, prompt: CaptionPrompt, words: Words) -> None:
        self._retries = guard.retries
        self._prompt = prompt
        self._language = words.language
        self._lists_tags = prompt.form == "tags" or bool(words.lists_tags)
        self.checks = tuple(name for name in FINDINGS if name in guard.checks and self._applies(name))

    def _applies(self, name: Finding) -> bool:
        """JSON and places are no prose, and a list of tags is in no language."""
        if name == "wrong_language" and (self._language is None or self._lists_tags):
            return False
        is_prose = self._prompt.form != "json" and self._prompt.reading in ("text", "entities")
        return is_prose or name in _OF_ANY_FORM

    async def run(self, ask: Ask, sampling: Sampling, left_s: Callable[[], float]) -> Guarded:
        """Raises what the first attempt raises; an error of a later one ends up in the report.

        `ask` gets the attempt's number and sampling. No attempt begins that would take longer than is left.
        """
        begun_s = time.monotonic()
        attempts = [await self._judged(await ask(0, sampling), {})]
        took_s = time.monotonic() - begun_s
        while attempts[-1].findings and len(attempts) <= self._retries:
            if left_s() < took_s:
                return Guarded(tuple(attempts), self.checks, "deadline")
            changes = _changes(sampling, len(attempts), attempts)
            try:
                chunk = await ask(len(attempts), replace(sampling, **changes))
            except ServeAppError as error:
                return Guarded(tuple(attempts), self.checks, error.code)
            attempts.append(await self._judged(chunk, changes))
        return Guarded(tuple(attempts), self.checks, None)

    async def _judged(self, chunk: Chunk, changes: dict[str, Any]) -> Attempt:
        sight = Sight(
            text=self._prompt.caption_json(chunk.text)["caption"],
            prompt=self._prompt.text,
            is_cut_off=chunk.finish_reason == "length",
            lists_tags=self._lists_tags,
            language=self._language,
        )
        if len(sight.text) < _LONG:
            return Attempt(chunk, findings(sight, self.checks), changes)
        return Attempt(chunk, await asyncio.to_thread(findings, sight, self.checks), changes)


def _changes(sampling: Sampling, number: int, attempts: list[Attempt]) -> dict[str, Any]:
    """What attempt `number` has otherwise: the same for the same request."""
    changes: dict[str, Any] = {
        "seed": ((sampling.seed or 0) + number) % 2**63,
        "temperature": max(sampling.temperature or 0.0, round(min(1.0, 0.2 + _TEMPERATURE_STEP * number), 2)),
    }
    if any("loop" in attempt.findings for attempt in attempts):
        changes["repetition_penalty"] = round((sampling.repetition_penalty or 1.0) + _PENALTY_STEP * number, 2)
    return changes

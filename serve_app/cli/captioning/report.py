"""What a run or an output amounts to: captions, failures by reason, what the guard found, how long captions are."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from serve_app.cli.captioning.outputs.rows import Row

_BARS: Final = " ▁▂▃▄▅▆▇█"  # the first for none
_NUM_BARS: Final = 12


@dataclass(slots=True)
class Report:
    """Counts of rows."""

    num_captioned: int = 0
    num_failed: int = 0
    num_cut: int = 0
    num_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)  # in words

    def count(self, row: Row) -> None:
        if row.is_failed:
            self.num_failed += 1
            self.failures[row.error_code or ""] += 1
            return
        self.num_captioned += 1
        self.num_cut += row.is_cut
        self.num_tokens += (row.usage or {}).get("completion_tokens") or 0
        self.findings.update((row.more.get("guard") or {}).get("findings") or ())
        self.lengths[len((row.caption or "").split())] += 1

    def as_json(self) -> dict[str, Any]:
        return {
            "captioned": self.num_captioned, "failed": self.num_failed, "cut_short": self.num_cut,
            "completion_tokens": self.num_tokens, "failures": dict(self.failures), "findings": dict(self.findings),
            "words": {str(length): number for length, number in sorted(self.lengths.items())},
        }  # fmt: skip

    def lines(self) -> list[str]:
        counts = ((self.num_captioned, "captioned"), (self.num_failed, "failed"), (self.num_cut, "cut short"))
        return ["; ".join(f"{n:,} {what}" for n, what in counts if n or what == "captioned"), *self.parts()]

    def parts(self) -> list[str]:
        """«5,312 tokens», «failed: 2 invalid_image», «guard found: 3 loop», «12 words a caption (5 to 30): ▁▃█▂»."""
        parts = [f"{self.num_tokens:,} tokens"]
        for title, counts in (("failed", self.failures), ("guard found", self.findings)):
            if counts:
                parts.append(f"{title}: " + ", ".join(f"{n:,} {name}" for name, n in counts.most_common()))
        if len(self.lengths) > 1:
            parts.append(f"{self._median} words a caption ({min(self.lengths)} to {max(self.lengths)}): {self._bars}")
        return parts

    @property
    def _median(self) -> int:
        num_before = 0
        for length in sorted(self.lengths):
            num_before += self.lengths[length]
            if 2 * num_before >= self.num_captioned:
                return length
        return 0

    @property
    def _bars(self) -> str:
        """How many captions have each length, from the shortest to the longest."""
        shortest, longest = min(self.lengths), max(self.lengths)
        numbers = [0] * min(_NUM_BARS, longest - shortest + 1)
        for length, number in self.lengths.items():
            numbers[(length - shortest) * len(numbers) // (longest - shortest + 1)] += number
        most = max(numbers)
        return "".join(_BARS[-(-number * (len(_BARS) - 1) // most)] for number in numbers)

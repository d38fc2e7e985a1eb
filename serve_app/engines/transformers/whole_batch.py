"""Batches that run from their prompts to their last token inside one `generate` call of the model.

For the architectures that `step_batch.can_join` refuses. A row that ends is delivered at once, but its place is
free only when all rows of the batch have ended.
"""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from serve_app.engines.transformers.checkpoint import Checkpoint
from serve_app.engines.transformers.prompt_batch import collate
from serve_app.engines.transformers.row import Row, TokenChoice
from serve_app.engines.transformers.row_sampler import RowSampler
from serve_app.engines.transformers.step_batch import OnStep, advance


class _Chooser(LogitsProcessor):
    """Makes the greedy `generate` take the sampler's choices: all other scores become -inf.

    It runs last, so "raw" logits are those after the checkpoint's own forced and suppressed tokens.
    """

    def __init__(self, sampler: RowSampler) -> None:
        self._sampler = sampler
        self.choices: list[TokenChoice] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.choices = self._sampler.choose(scores)
        tokens = torch.tensor([[choice.token] for choice in self.choices], device=scores.device)
        return scores.fill_(-torch.inf).scatter_(1, tokens, 0.0)  # type: ignore[return-value]  # a FloatTensor


class _Steps(StoppingCriteria):
    """Called by `generate` after each token of the batch: advances every row, and says which rows have ended.

    It also delivers the chunks, because only a row's text shows its stop strings.
    """

    def __init__(self, rows: Sequence[Row], chooser: _Chooser, eos_ids: frozenset[int], on_step: OnStep) -> None:
        self._rows = rows
        self._chooser = chooser
        self._eos_ids = eos_ids
        self._on_step = on_step

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: object) -> torch.BoolTensor:
        advance(self._rows, self._chooser.choices, self._eos_ids, self._on_step)
        ended = [row.is_ended for row in self._rows]
        return torch.tensor(ended, device=input_ids.device, dtype=torch.bool)  # type: ignore[return-value]  # a BoolTensor


def run_whole_batch(rows: Sequence[Row], checkpoint: Checkpoint, on_step: OnStep) -> None:
    """Generate until every row has ended. `on_step` is called once for each token of the batch."""
    model = checkpoint.model
    chooser = _Chooser(RowSampler(rows, checkpoint.eos_ids, model.device))
    model.generate(
        **collate([row.prompt for row in rows], checkpoint),
        max_new_tokens=max(row.max_tokens for row in rows),
        logits_processor=LogitsProcessorList([chooser]),
        stopping_criteria=StoppingCriteriaList([_Steps(rows, chooser, checkpoint.eos_ids, on_step)]),
    )
    left = [row for row in rows if not (row.is_ended or row.is_cancelled)]
    assert not left, f"generate returned while {len(left)} rows had no end"

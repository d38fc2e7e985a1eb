"""Sampling that is each row's own, inside one batched `generate`.

transformers samples a batch with one setting and one random stream. Here `generate` runs greedily, and this
processor leaves a sampling row only the token that the row's own temperature, top_p and seed chose: the same
seed gives the same answer, whatever else is in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor


@dataclass(frozen=True, slots=True)
class RowSampling:
    """One row's setting; `temperature` 0 is greedy."""

    temperature: float
    top_p: float
    generator: torch.Generator


class RowSampler(LogitsProcessor):
    """Scores of shape (rows, vocabulary) in; out, sampled rows have one finite score."""

    def __init__(self, rows: Sequence[RowSampling]) -> None:
        self._rows = [(index, row) for index, row in enumerate(rows) if row.temperature > 0]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self._rows:
            return scores
        forced = scores.clone()
        for index, row in self._rows:
            token_id = _sample(scores[index].float().cpu(), row)
            forced[index] = -torch.inf
            forced[index, token_id] = 0
        return forced


def _sample(logits: Tensor, row: RowSampling) -> int:
    """Nucleus sampling (Holtzman et al., 2019): the fewest most likely tokens whose mass reaches top_p."""
    probabilities, token_ids = torch.softmax(logits / row.temperature, dim=-1).sort(descending=True, stable=True)
    mass_before = probabilities.cumsum(-1) - probabilities
    probabilities[mass_before >= row.top_p] = 0
    return int(token_ids[torch.multinomial(probabilities, 1, generator=row.generator)])

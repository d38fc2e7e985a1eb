"""Chooses each row's next token inside one `generate` call, by that row's own temperature, top_p and seed.

`generate` itself runs greedy: for rows that sample, all scores but the chosen token's become -inf. A row's
randomness is its own, one number a step, so a seed gives the same answer whatever else is in the batch.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import LogitsProcessor


@dataclass(frozen=True, slots=True)
class RowSampling:
    """One row's sampling, and where its randomness comes from. `temperature` 0 is greedy."""

    temperature: float
    top_p: float
    randomness: random.Random


class RowSampler(LogitsProcessor):
    """A logits processor over the whole batch; rows with temperature 0 pass through untouched."""

    def __init__(self, rows: Sequence[RowSampling], device: torch.device) -> None:
        sampled = [(index, row) for index, row in enumerate(rows) if row.temperature > 0]
        self._randomness = [row.randomness for _, row in sampled]
        self._index = torch.tensor([index for index, _ in sampled], device=device, dtype=torch.long)
        self._temperature = torch.tensor([row.temperature for _, row in sampled], device=device)[:, None]
        self._top_p = torch.tensor([row.top_p for _, row in sampled], device=device)[:, None]
        self._has_top_p = any(row.top_p < 1 for _, row in sampled)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores of shape (rows, vocabulary)."""
        if not self._randomness:
            return scores
        logits = scores[self._index].float()
        # the greatest logit becomes 0 first, so that a tiny temperature can't overflow
        logits = (logits - logits.amax(-1, keepdim=True)) / self._temperature.clamp(min=1e-5)
        probabilities = logits.softmax(-1)
        if self._has_top_p:
            probabilities = _nucleus(probabilities, self._top_p)
        chosen = _draw(probabilities, [one.random() for one in self._randomness])
        forced = torch.full_like(scores[self._index], -torch.inf).scatter_(1, chosen, 0.0)
        scores[self._index] = forced
        return scores


def _nucleus(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Zero outside each row's smallest set of likeliest tokens that has at least `top_p` of the mass."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    outside = (before >= top_p) & (top_p < 1)
    outside[:, 0] = False
    return probabilities.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), 0.0)


def _draw(probabilities: torch.Tensor, uniform: list[float]) -> torch.Tensor:
    """Each row's token at its uniform number of the cumulated mass, shape (rows, 1)."""
    mass = probabilities.double().cumsum(-1)  # float32 loses small tokens in a vocabulary of 200,000
    at = torch.tensor(uniform, device=mass.device, dtype=mass.dtype)[:, None] * mass[:, -1:]
    return torch.searchsorted(mass, at, right=True).clamp(max=mass.shape[-1] - 1)

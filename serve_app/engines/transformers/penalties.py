"""Repetition, frequency and presence penalties of a batch's rows; rows without one cost nothing.

Repetition (CTRL, https://arxiv.org/abs/1909.05858) divides positive and multiplies negative logits of tokens in
the prompt or the answer; frequency and presence (OpenAI's API) subtract for the answer's tokens alone.
"""

from collections.abc import Sequence

import torch

from serve_app.engines.transformers.row import Row


class Penalties:
    """Counts of the tokens so far, for the rows that have a penalty. Made anew when the batch changes."""

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        penalized = [(number, row) for number, row in enumerate(rows) if row.sampling.has_penalty]
        self._rows = [row for _, row in penalized]
        self._index = torch.tensor([number for number, _ in penalized], device=device, dtype=torch.long)
        self._repetition = self._column([row.sampling.repetition_penalty for row in self._rows])
        self._frequency = self._column([row.sampling.frequency_penalty for row in self._rows])
        self._presence = self._column([row.sampling.presence_penalty for row in self._rows])
        self._counts: torch.Tensor | None = None
        self._is_in_prompt: torch.Tensor | None = None

    def _column(self, values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=self._index.device, dtype=torch.float32)[:, None]

    def apply(self, logits: torch.Tensor) -> None:
        """Change `logits`, shape (rows, vocabulary), in place."""
        if not self._rows:
            return
        if self._counts is None or self._is_in_prompt is None:
            self._counts, self._is_in_prompt = self._counted(logits.shape[-1])
        own = logits[self._index]
        is_seen = self._is_in_prompt | (self._counts > 0)
        repeated = torch.where(own > 0, own / self._repetition, own * self._repetition)
        own = torch.where(is_seen, repeated, own)
        logits[self._index] = own - self._frequency * self._counts - self._presence * (self._counts > 0)

    def count(self, tokens: torch.Tensor) -> None:
        """Note the step's tokens, shape (rows,)."""
        if self._counts is not None:
            self._counts.scatter_add_(1, tokens[self._index][:, None], torch.ones_like(self._counts[:, :1]))

    def _counted(self, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        device = self._index.device
        counts = [_bincount(torch.tensor(row.tokens, dtype=torch.long), num_tokens) for row in self._rows]
        nothing = torch.tensor([], dtype=torch.long)
        prompts = [
            row.prompt.tensors["input_ids"][0] if row.sampling.penalizes_prompt else nothing for row in self._rows
        ]
        in_prompt = [_bincount(prompt, num_tokens) > 0 for prompt in prompts]
        return torch.stack(counts).to(device, torch.float32), torch.stack(in_prompt).to(device)


def _bincount(tokens: torch.Tensor, num_tokens: int) -> torch.Tensor:
    in_range = tokens[(tokens >= 0) & (tokens < num_tokens)]  # an image's token may stand outside the output layer
    return torch.bincount(in_range, minlength=num_tokens)

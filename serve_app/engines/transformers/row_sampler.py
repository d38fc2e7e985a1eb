"""Chooses each row's next token from the model's logits, by that row's own settings and seed.

A sampler is made for one set of rows, and anew when a row joins or leaves. A setting that no row uses costs nothing.
A row's choice never depends on the rows beside it: it draws from its own random numbers, one at each step.
"""

from collections.abc import Callable, Sequence

import torch

from serve_app.engines.transformers.row import Row, RowSampling, TokenChoice


class RowSampler:
    """In this order: logprobs of the raw logits, penalties, grammar, least length, temperature, top-k, top-p, min-p.

    Top-k, top-p and min-p follow transformers' order: each looks at what the one before it left.
    """

    def __init__(self, rows: Sequence[Row], eos_ids: frozenset[int], device: torch.device) -> None:
        self._device = device
        self._eos = torch.tensor(sorted(eos_ids), device=device, dtype=torch.long)
        self._penalties = _Penalties(*_where(rows, lambda sampling: sampling.has_penalty, device))
        self._constrained = [(number, row) for number, row in enumerate(rows) if row.grammar]
        self._prolonged = [(number, row) for number, row in enumerate(rows) if row.sampling.bans_eos(0)]
        self._logged, self._logged_index = _where(rows, lambda sampling: sampling.num_logprobs is not None, device)
        self._sampled, self._sampled_index = _where(rows, lambda sampling: sampling.temperature > 0, device)
        self._temperature = _column([row.sampling.temperature for row in self._sampled], device)
        cut, self._cut_index = _where(self._sampled, lambda sampling: sampling.truncates, device)
        self._top_k = _column([row.sampling.top_k for row in cut], device)
        self._top_p = _column([row.sampling.top_p for row in cut], device)
        self._min_p = _column([row.sampling.min_p for row in cut], device)

    def choose(self, logits: torch.Tensor) -> list[TokenChoice]:
        """Each row's token, from float32 logits of shape (rows, vocabulary), which are overwritten."""
        raw = logits[self._logged_index].log_softmax(-1) if self._logged else None
        self._penalties.apply(logits)
        self._constrain(logits)
        self._prolong(logits)
        tokens = logits.argmax(-1)
        if self._sampled:
            tokens[self._sampled_index] = self._draw(logits[self._sampled_index])
        self._penalties.count(tokens)
        choices = [TokenChoice(token) for token in tokens.tolist()]
        if raw is not None:
            self._add_logprobs(choices, tokens, raw)
        return choices

    def _constrain(self, logits: torch.Tensor) -> None:
        for number, row in self._constrained:
            if row.grammar and not row.is_ended:
                num_left = row.max_tokens - len(row.tokens)
                is_allowed = row.grammar.allowed(logits.shape[-1], num_left).to(self._device)
                logits[number].masked_fill_(~is_allowed, -torch.inf)

    def _prolong(self, logits: torch.Tensor) -> None:
        """No end before `min_tokens`, or none at all, except where a grammar allows nothing else."""
        for number, row in self._prolonged:
            if row.sampling.bans_eos(len(row.tokens)):
                longer = logits[number].index_fill(0, self._eos, -torch.inf)
                if not row.grammar or longer.isfinite().any():
                    logits[number] = longer

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        # the greatest logit becomes 0 first, so that a tiny temperature can't overflow
        logits = (logits - logits.amax(-1, keepdim=True)) / self._temperature.clamp(min=1e-5)
        probabilities = logits.softmax(-1)
        if len(self._cut_index):
            cut = _truncated(probabilities[self._cut_index], self._top_k, self._top_p, self._min_p)
            probabilities[self._cut_index] = cut
        mass = probabilities.double().cumsum(-1)  # float32 loses small tokens in a vocabulary of 200,000
        uniform = _column([row.sampling.randomness.random() for row in self._sampled], self._device, mass.dtype)
        drawn = torch.searchsorted(mass, uniform * mass[:, -1:], right=True)
        return drawn.clamp(max=mass.shape[-1] - 1)[:, 0]

    def _add_logprobs(self, choices: list[TokenChoice], tokens: torch.Tensor, raw: torch.Tensor) -> None:
        chosen = raw.gather(1, tokens[self._logged_index][:, None])[:, 0].tolist()
        num_top = max(row.sampling.num_logprobs or 0 for row in self._logged)
        values, ids = (part.tolist() for part in raw.topk(min(num_top, raw.shape[-1]), dim=-1))
        for at, number in enumerate(self._logged_index.tolist()):
            num_own = self._logged[at].sampling.num_logprobs
            top = tuple(zip(ids[at][:num_own], values[at][:num_own], strict=True))
            choices[number] = TokenChoice(choices[number].token, chosen[at], top)


class _Penalties:
    """Repetition, frequency and presence penalties, with the counts of the tokens so far, of the rows at `index`.

    Repetition (CTRL, https://arxiv.org/abs/1909.05858) divides positive and multiplies negative logits of tokens in
    the prompt or the answer; frequency and presence (OpenAI's API) subtract for the answer's tokens alone.
    """

    def __init__(self, rows: Sequence[Row], index: torch.Tensor) -> None:
        self._rows = rows
        self._index = index
        self._repetition = _column([row.sampling.repetition_penalty for row in rows], index.device)
        self._frequency = _column([row.sampling.frequency_penalty for row in rows], index.device)
        self._presence = _column([row.sampling.presence_penalty for row in rows], index.device)
        self._counts: torch.Tensor | None = None
        self._is_in_prompt = torch.empty(0)

    def apply(self, logits: torch.Tensor) -> None:
        """Change `logits`, shape (rows, vocabulary), in place."""
        if not self._rows:
            return
        if self._counts is None:
            answers = [torch.tensor(row.tokens, dtype=torch.long) for row in self._rows]
            prompts = [
                row.prompt.token_ids if row.sampling.penalizes_prompt else answer[:0]
                for row, answer in zip(self._rows, answers, strict=True)
            ]
            self._counts = self._counted(answers, logits.shape[-1]).float()
            self._is_in_prompt = self._counted(prompts, logits.shape[-1]) > 0
        own = logits[self._index]
        is_seen = self._is_in_prompt | (self._counts > 0)
        repeated = torch.where(own > 0, own / self._repetition, own * self._repetition)
        own = torch.where(is_seen, repeated, own)
        logits[self._index] = own - self._frequency * self._counts - self._presence * (self._counts > 0)

    def count(self, tokens: torch.Tensor) -> None:
        """Note the step's tokens, shape (rows,)."""
        if self._counts is not None:
            self._counts.scatter_add_(1, tokens[self._index][:, None], torch.ones_like(self._counts[:, :1]))

    def _counted(self, texts: Sequence[torch.Tensor], num_tokens: int) -> torch.Tensor:
        # an image's token may stand outside the output layer
        in_range = [text[(text >= 0) & (text < num_tokens)] for text in texts]
        return torch.stack([torch.bincount(text, minlength=num_tokens) for text in in_range]).to(self._index.device)


def _where(
    rows: Sequence[Row], holds: Callable[[RowSampling], bool], device: torch.device
) -> tuple[list[Row], torch.Tensor]:
    """The rows whose settings are so, and their numbers."""
    numbers = [number for number, row in enumerate(rows) if holds(row.sampling)]
    return [rows[number] for number in numbers], torch.tensor(numbers, device=device, dtype=torch.long)


def _column(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, device=device, dtype=dtype)[:, None]


def _truncated(
    probabilities: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """Zero outside each row's `top_k` likeliest, then outside the smallest set of these with `top_p` of their mass,
    then below `min_p` of the likeliest. Settings have shape (rows, 1)."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(ordered.shape[-1], device=ordered.device)
    ordered = ordered.masked_fill((top_k > 0) & (rank >= top_k), 0.0)
    before = ordered.cumsum(-1) - ordered
    is_outside = (before >= top_p * ordered.sum(-1, keepdim=True)) & (top_p < 1)
    is_outside |= ordered < min_p * ordered[:, :1]
    is_outside[:, 0] = False
    return torch.zeros_like(probabilities).scatter(1, order, ordered.masked_fill(is_outside, 0.0))

"""A row: one answer on its way through the model, from its prompt to its last token.

Owns what belongs to one answer (sampling, text, logprobs, grammar) and turns each token into a chunk. Knows nothing
of batches, threads or tensors but its prompt's.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from serve_app.engines.transformers.answer_text import AnswerText
from serve_app.engines.transformers.output_grammar import Grammar
from serve_app.engines.transformers.prompt_batch import Prompt
from serve_app.errors import InvalidRequest, ServeAppError
from serve_app.messages import Chunk, FinishReason, GenerationRequest, Sampling, TokenLogprob, finite_logprob

Outcome = Chunk | ServeAppError


@dataclass(frozen=True, slots=True)
class RowSampling:
    """How one row's tokens are chosen, nothing left open. `temperature` 0 is greedy, `top_k` 0 has no limit."""

    randomness: random.Random
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalizes_prompt: bool = True  # encoder–decoders: no, their prompt isn't in the decoder
    min_tokens: int = 0
    ignores_eos: bool = False
    num_logprobs: int | None = None

    def bans_eos(self, num_tokens: int) -> bool:
        """Whether an answer of `num_tokens` may not end yet by itself."""
        return self.ignores_eos or num_tokens < self.min_tokens

    @property
    def has_penalty(self) -> bool:
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0

    @property
    def truncates(self) -> bool:
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


def row_sampling(
    sampling: Sampling, index: int, defaults: Mapping[str, float], penalizes_prompt: bool
) -> RowSampling:
    """The request's sampling for its answer number `index`, with the checkpoint's `defaults` for what it leaves open.

    The first of several answers is the one that the same seed gives alone.
    """
    settings = {name: getattr(sampling, name) for name in defaults}
    settings |= {name: default for name, default in defaults.items() if settings[name] is None}
    is_seeded_apart = sampling.seed is not None and index > 0
    return RowSampling(
        randomness=random.Random(f"{sampling.seed}/{index}" if is_seeded_apart else sampling.seed),
        **settings | {"top_k": max(0, int(settings["top_k"]))},
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        penalizes_prompt=penalizes_prompt,
        min_tokens=sampling.min_tokens,
        ignores_eos=sampling.ignores_eos,
        num_logprobs=sampling.num_logprobs,
    )


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """A step's token for one row. `logprob` and `top` (token and logprob, likeliest first) are set on request."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True, eq=False)
class Row:
    """`is_cancelled` may be set by any thread, at any time; all else is the worker's once it is submitted."""

    request: GenerationRequest
    index: int
    prompt: Prompt
    max_tokens: int
    sampling: RowSampling
    answer: AnswerText
    token_text: Callable[[int], str]
    received_s: float
    special_ids: frozenset[int] = frozenset()
    token_bytes: Callable[[int], bytes | None] = lambda token: None
    grammar: Grammar | None = None
    is_cancelled: bool = False
    is_ended: bool = False
    started_s: float | None = None
    tokens: list[int] = field(default_factory=list)
    _pending_logprobs: list[TokenLogprob] = field(default_factory=list)
    _num_sent: int = 0
    _is_first: bool = True

    def step(self, choice: TokenChoice, eos_ids: frozenset[int]) -> Outcome | None:
        """Take the step's token; the chunk it makes, if any. Sets `is_ended` with the last one."""
        if self.is_cancelled:
            self.is_ended = True
            return None
        token = choice.token
        self.tokens.append(token)
        if self.sampling.num_logprobs is not None:
            top = tuple(self._token_logprob(token, logprob) for token, logprob in choice.top)
            self._pending_logprobs.append(self._token_logprob(token, choice.logprob, top))
        is_end = token in eos_ids
        if self.grammar:
            if not is_end:
                self.grammar.take(token)
            if error := self.grammar.error:
                self.is_ended = True
                return InvalidRequest(
                    f"the answer can't be held to this response_format ({error}): make it simpler", "response_format"
                )
        text = "" if is_end else self.answer.add(token, len(self.tokens) > self.sampling.min_tokens)
        is_end = is_end or self.answer.is_stopped or (self.grammar is not None and self.grammar.is_complete)
        finish: FinishReason | None = None
        if is_end or len(self.tokens) >= self.max_tokens:
            self.is_ended = True
            text += self.answer.finish()
            finish = "stop" if is_end or self.answer.is_stopped else "length"
        return self._chunk(text, finish) if text or finish else None

    def _token_logprob(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        text, own_bytes = self.token_text(token), self.token_bytes(token)
        return TokenLogprob(text, finite_logprob(logprob), top, token, token in self.special_ids, own_bytes)

    def _chunk(self, text: str, finish: FinishReason | None) -> Chunk:
        queue_s = (self.started_s or self.received_s) - self.received_s if self._is_first else None
        num_new = len(self.tokens) - self._num_sent
        logprobs = tuple(self._pending_logprobs)
        self._pending_logprobs, self._num_sent, self._is_first = [], len(self.tokens), False
        return Chunk(
            text,
            num_new,
            self.prompt.num_tokens,
            finish,
            queue_s,
            index=self.index,
            logprobs=logprobs,
            stopped_by=self.answer.stopped_by if finish == "stop" else None,
        )

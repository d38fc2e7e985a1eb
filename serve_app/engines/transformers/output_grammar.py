"""Holds an answer to a JSON schema, a regular expression or a choice, through llguidance's token masks."""

from typing import Any

import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer

from serve_app.engines.grammar.ending import Ending, EndingTokens
from serve_app.engines.grammar.source import LIMITS, KeptFormats, first_line, is_json
from serve_app.messages import OutputFormat

_BITS = torch.arange(8, dtype=torch.uint8)


class Grammar:
    """One answer's position in its grammar. `error` says why the grammar can't continue; it is empty while it can."""

    def __init__(self, matcher: LLMatcher, ending_tokens: EndingTokens | None = None) -> None:
        """`ending_tokens`: for JSON, which must be closed before the tokens run out."""
        self._matcher = matcher
        self._ending_tokens = ending_tokens
        self._ending = Ending(ending_tokens) if ending_tokens else None

    @property
    def is_complete(self) -> bool:
        """Whether the answer is complete and nothing may follow."""
        return self._matcher.is_stopped()

    @property
    def error(self) -> str:
        return first_line(self._matcher.get_error())

    def allowed(self, num_tokens: int, num_left: int | None = None) -> torch.Tensor:
        """The tokens that may come next, as booleans of shape (num_tokens,); all are true after an error.

        `num_left`: how many more tokens the answer may have.
        """
        mask = self._matcher.compute_bitmask()
        if self._ending and num_left is not None and self._ending.is_near(self._matcher, num_left):
            token = self._ending.closing(mask)
            if token is not None:
                return torch.arange(num_tokens) == token
        words = torch.frombuffer(bytearray(mask), dtype=torch.uint8)
        bits = (words[:, None] >> _BITS) & 1  # the token of the lowest number in the lowest bit
        allowed_bits = bits.flatten()[:num_tokens].bool()
        is_allowed = torch.nn.functional.pad(allowed_bits, (0, num_tokens - len(allowed_bits)))
        return is_allowed if is_allowed.any() else torch.ones_like(is_allowed)

    def take(self, token: int) -> None:
        """Note the answer's next token."""
        self._matcher.consume_token(token)

    def fresh(self) -> "Grammar":
        """The same grammar at its beginning, independent of this one."""
        return Grammar(self._matcher.deep_copy(), self._ending_tokens)


class GrammarCompiler:
    """Compiles output formats for one model's tokenizer and keeps the latest ones. Safe for several threads."""

    def __init__(self, tokenizer: Any, eos_ids: frozenset[int]) -> None:
        """Raises `ValueError` where llguidance can't read the tokenizer (it wants a fast one)."""
        self._tokenizer: LLTokenizer = from_tokenizer(tokenizer, eos_token=sorted(eos_ids) or None)
        self._ending_tokens = EndingTokens(self._tokenizer)
        self._kept = KeptFormats(self._compiled)

    def compile(self, output_format: OutputFormat) -> Grammar:
        """A grammar at its beginning. Takes up to seconds: call it in a thread. Raises `InvalidRequest`."""
        return self._kept.get(output_format).fresh()

    def _compiled(self, source: str) -> Grammar | str:
        """The grammar, or why there is none."""
        matcher = LLMatcher(self._tokenizer, source, log_level=0, limits=LIMITS)
        if not matcher.is_error():
            matcher.deep_copy().compute_bitmask()  # some limits show with the first mask only
        ending_tokens = self._ending_tokens if is_json(source) else None
        return first_line(matcher.get_error()) or Grammar(matcher, ending_tokens)

"""Sees to it that JSON under a grammar ends within the answer's tokens: near the limit its texts and lists close.

Without it a model that writes on gives half an object. Choices, as among an enum's values, stay the model's own.
While even the shortest ending doesn't fit, nothing is done. A look is short, since a whole batch waits for it.
"""

import time
from collections.abc import Iterator

from llguidance import LLMatcher, LLTokenizer

_MAX_TOKENS = 1024  # left: with more of them it isn't looked
_MAX_LOOK_S = 0.01  # of this thread's own time
_SPARE_TOKENS = 8  # for choices that are longer than the shortest, a character of several tokens, an end token
_IN_TEXT, _BEHIND_VALUE, _VALUE = b'"', b"}],", b':0123456789-"ntf[{'
_ONLY_IN_TEXT = b"xQ~"  # where one of these may come, a text is being written


class EndingTokens:
    """The tokens of one tokenizer that stand for single characters, each as its place in a mask."""

    def __init__(self, tokenizer: LLTokenizer) -> None:
        characters = set(_IN_TEXT + _BEHIND_VALUE + _VALUE + _ONLY_IN_TEXT)
        self._by_byte: dict[int, int] = {}
        for token in range(tokenizer.vocab_size):
            text = tokenizer.decode_bytes([token])
            if len(text) == 1 and text[0] in characters:
                self._by_byte.setdefault(text[0], token)

    def closing(self, mask: bytes) -> int | None:
        """What ends the text, the list or the object that is being written, or leads on to what must follow."""
        in_text = self._first(_ONLY_IN_TEXT, mask) is not None
        return self._first(_IN_TEXT if in_text else _BEHIND_VALUE, mask)

    def shortest(self, mask: bytes) -> int | None:
        """The token that leads to the end soonest, as far as one step tells; None where none may come."""
        candidates = (self.closing(mask), self._first(_VALUE, mask), next(_allowed(mask), None))
        return next((token for token in candidates if token is not None), None)

    def _first(self, characters: bytes, mask: bytes) -> int | None:
        tokens = (self._by_byte.get(character) for character in characters)
        return next((token for token in tokens if token is not None and mask[token // 8] >> token % 8 & 1), None)


class Ending:
    """One answer's way to its end."""

    def __init__(self, tokens: EndingTokens) -> None:
        self._tokens = tokens
        self._look_at = _MAX_TOKENS  # tokens left, at and below which it is looked how many the ending takes
        self._is_closing = False

    def is_near(self, matcher: LLMatcher, num_left: int) -> bool:
        """Whether the answer has to be closed now to end within so many tokens. Once it is, it stays."""
        if self._is_closing or num_left > self._look_at:
            return self._is_closing
        num_needed = self._num_tokens(matcher.deep_copy(), num_left)
        if num_needed is None:
            self._look_at = num_left // 2  # the answer may come nearer to its end by itself
            return False
        spare = num_left - num_needed - _SPARE_TOKENS
        self._is_closing, self._look_at = spare <= 0, num_left - max(1, spare // 2)
        return self._is_closing

    def closing(self, mask: bytes) -> int | None:
        """The token that has to come next where the end is near, out of those in the mask; None where any may."""
        return self._tokens.closing(mask)

    def _num_tokens(self, matcher: LLMatcher, at_most: int) -> int | None:
        """Of a short ending, not always the shortest; None where none was seen."""
        num_tokens, until = 0, time.thread_time() + _MAX_LOOK_S
        while not matcher.is_accepting():
            if time.thread_time() > until:
                return None
            token = self._tokens.shortest(matcher.compute_bitmask())
            step = matcher.compute_ff_tokens() or ([] if token is None else [token])
            num_tokens += len(step)
            if not step or num_tokens > at_most or not matcher.consume_tokens(step):
                return None
        return num_tokens


def _allowed(mask: bytes) -> Iterator[int]:
    return (8 * place + byte.bit_length() - 1 for place, byte in enumerate(mask) if byte)

"""The bytes that a token stands for, for tokenizers whose tokens may be parts of a character."""

import json
import re
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenBytes:
    """The bytes of one tokenizer's tokens, cached."""

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = getattr(backend, "decoder", None)
        kinds = json.dumps(json.loads(decoder.__getstate__())) if decoder is not None else ""
        self._byte_of = _byte_level_alphabet() if '"ByteLevel"' in kinds else {}
        self._has_byte_tokens = '"ByteFallback"' in kinds
        self._tokenizer = tokenizer
        # Read once: it is a property, which builds the table anew.
        self._added = frozenset(tokenizer.added_tokens_decoder if kinds else ())
        self._cache: dict[int, bytes | None] = {}

    def of(self, token: int) -> bytes | None:
        """None if the token's text says them."""
        if token not in self._cache:
            self._cache[token] = self._read(token)
        return self._cache[token]

    def _read(self, token: int) -> bytes | None:
        if not (self._byte_of or self._has_byte_tokens) or token in self._added:
            return None
        spelling = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(spelling, str):
            return None
        if self._byte_of:
            values = [self._byte_of.get(character) for character in spelling]
            return None if None in values else bytes(byte for byte in values if byte is not None)
        single = _BYTE_TOKEN.fullmatch(spelling)
        return bytes([int(single[1], 16)]) if single else None


def _byte_level_alphabet() -> dict[str, int]:
    """The character for each byte in a byte-level vocabulary: itself where it prints, one from 256 on where not.

    As in GPT-2: https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + place): byte for place, byte in enumerate(others)}

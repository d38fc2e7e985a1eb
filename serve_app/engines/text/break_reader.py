"""Makes a tokenizer of transformers read the breaks that `client_text.py` puts into clients' texts.

It encodes a text as if it had no breaks, except that no token spans one. The places of tokens count the breaks;
`unbroken` takes them out.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from transformers import BatchEncoding

from serve_app.engines.text.client_text import BREAK, without_breaks

Place = tuple[int, int]  # of a token in a text: the first character, and the one after the last
_Encoded = tuple[list[int], Callable[[], list[Place]]]  # tokens, and a way to their places

# Encoded before the text after a break, and removed again: sentencepiece would put a space before a text's start.
_GUARD = "\n"
_COLUMNS = frozenset({"input_ids", "attention_mask", "token_type_ids", "offset_mapping"})
_ONE_ROW = {"return_tensors": None, "truncation": None, "max_length": None, "padding": False}


def read_breaks(tokenizer: Any) -> None:
    """Change the tokenizer in place. There is no hook for it, so it gets a class of its own."""
    if not isinstance(tokenizer, _ReadsBreaks):
        base = type(tokenizer)
        tokenizer.__class__ = type(base.__name__, (_ReadsBreaks, base), {"__module__": base.__module__})


def unbroken(text: str, places: Iterable[Place]) -> tuple[str, list[Place]]:
    """The text without its breaks, and the tokens' places in it."""
    if BREAK not in text:
        return text, list(places)
    ends, at = [], text.find(BREAK)
    while at >= 0:
        ends.append(at + len(BREAK))
        at = text.find(BREAK, ends[-1])
    moved, number = [], 0
    for start, stop in places:
        while number < len(ends) and ends[number] <= start:
            number += 1
        moved.append((start - number * len(BREAK), stop - number * len(BREAK)) if stop else (start, stop))
    return without_breaks(text), moved


@dataclass(frozen=True, slots=True)
class _Piece:
    """The text between two breaks: its tokens, its start in the whole text, and a way to its tokens' places."""

    ids: list[int]
    begin: int
    offsets: Callable[[], list[Place]]

    def places(self) -> list[Place]:
        return [(max(0, start) + self.begin, stop + self.begin) for start, stop in self.offsets()]


class _Row:
    """One text's row of a tokenizer's result."""

    def __init__(self, pieces: list[_Piece], ends: tuple[list[int], list[int]], max_length: int | None) -> None:
        self._pieces = pieces
        self._ends = ends
        self._max_length = max_length
        before, after = ends
        self.ids = [*before, *chain.from_iterable(piece.ids for piece in pieces), *after][:max_length]

    def places(self) -> list[Place]:
        before, after = ([(0, 0)] * len(ids) for ids in self._ends)
        return [*before, *chain.from_iterable(piece.places() for piece in self._pieces), *after][: self._max_length]

    def column(self, name: str) -> list[Any]:
        if name == "offset_mapping":
            return self.places()
        constants = {"attention_mask": 1, "token_type_ids": 0}
        return [constants[name]] * len(self.ids) if name in constants else self.ids


class _Encoding(BatchEncoding):
    """The result for texts with breaks. Idefics3's processor looks up the tokens of its images in it."""

    rows: list[_Row]

    def char_to_token(self, row_or_char: int, char: int | None = None, sequence_index: int = 0) -> int | None:
        row, at = (0, row_or_char) if char is None else (row_or_char, char)
        return next((n for n, (start, stop) in enumerate(self.rows[row].places()) if start <= at < stop), None)


class _ReadsBreaks:
    """The base class that `read_breaks` gives to a tokenizer."""

    def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:
        encode: Any = super().__call__  # type: ignore[misc]
        texts = [text] if isinstance(text, str) else text if isinstance(text, list | tuple) else []
        if not any(isinstance(item, str) and BREAK in item for item in texts):
            return encode(text, *args, **options)
        tensors, names = options.get("return_tensors"), encode("", **options | _ONE_ROW)
        rows = [_row(item, self, encode, **options) for item in texts]
        columns: dict[str, list[Any]] = {
            name: [row.column(name) for row in rows] for name in names if name in _COLUMNS
        }
        if isinstance(text, str) and not tensors:
            columns = {name: column[0] for name, column in columns.items()}
        answer = _Encoding(columns, tensor_type=tensors)
        answer.rows = rows
        return answer

    def encode(self, text: Any, *args: Any, **options: Any) -> Any:
        if isinstance(text, str) and BREAK in text:
            return self(text, **options)["input_ids"]
        return super().encode(text, *args, **options)  # type: ignore[misc]


def _row(
    text: str,
    tokenizer: Any,
    encode: Callable[..., Any],
    *,
    add_special_tokens: bool = True,
    truncation: Any = None,
    max_length: int | None = None,
    **_: Any,
) -> _Row:
    first, *others = text.split(BREAK)
    pieces = [_Piece(ids, 0, offsets) for ids, offsets in _encoded([first], tokenizer, encode)]
    ends = _ends(first, pieces[0].ids, encode) if add_special_tokens else ([], [])
    begin = len(first)
    for piece, (ids, offsets) in zip(others, _within(others, tokenizer, encode), strict=True):
        begin += len(BREAK)
        pieces.append(_Piece(ids, begin, offsets))
        begin += len(piece)
    return _Row(pieces, ends, max_length if truncation else None)


def _within(texts: list[str], tokenizer: Any, encode: Callable[..., Any]) -> list[_Encoded]:
    """The tokens of texts that don't begin the whole. Equal ones, which may be many, are encoded once."""
    ((guard, _),) = _encoded([_GUARD], tokenizer, encode)
    encoded: dict[str, _Encoded] = {}
    unequal = list(dict.fromkeys(texts))
    guarded = _encoded([_GUARD + text for text in unequal], tokenizer, encode)
    for text, (ids, offsets) in zip(unequal, guarded, strict=True):
        if ids[: len(guard)] == guard:
            encoded[text] = ids[len(guard) :], partial(_without_guard, offsets, len(guard))
        else:  # the guard is no token of its own there
            (encoded[text],) = _encoded([text], tokenizer, encode)
    return [encoded[text] for text in texts]


def _without_guard(offsets: Callable[[], list[Place]], num_tokens: int) -> list[Place]:
    return [(start - len(_GUARD), stop - len(_GUARD)) for start, stop in offsets()[num_tokens:]]


def _encoded(texts: list[str], tokenizer: Any, encode: Callable[..., Any]) -> list[_Encoded]:
    """Uses the fast backend where there is one: a hostile text may have a piece for every seven characters."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [(ids, list) for ids in encode(texts, add_special_tokens=False)["input_ids"]]
    if backend.truncation is not None:  # left by another call; to set it holds the backend's lock
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    encodings = backend.encode_batch(texts, add_special_tokens=False)
    return [(encoding.ids, partial(getattr, encoding, "offsets")) for encoding in encodings]


def _ends(text: str, inside: list[int], encode: Callable[..., Any]) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer adds before and after a text."""
    whole = list(encode(text, add_special_tokens=True)["input_ids"])
    for at in range(len(whole) - len(inside) + 1):
        if whole[at : at + len(inside)] == inside:
            return whole[:at], whole[at + len(inside) :]
    return [], []

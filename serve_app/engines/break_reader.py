"""Makes a tokenizer of transformers' read the breaks that `client_text.py` puts into clients' texts.

Its answers are those for the text without its breaks, but that no token spans one. Places of tokens are those in the
text that it got, breaks included; `unbroken` takes them out.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from transformers import BatchEncoding

from serve_app.engines.client_text import BREAK, without_breaks

Place = tuple[int, int]  # of a token in a text: the first character, and the one after the last

# Goes before what follows a break, and is taken off again: sentencepiece puts a space in front of a text's beginning.
_GUARD = "\n"


def read_breaks(tokenizer: Any) -> None:
    """In place, by a class of its own: there is no hook for it."""
    if not isinstance(tokenizer, _ReadsBreaks):
        known = type(tokenizer)
        tokenizer.__class__ = type(known.__name__, (_ReadsBreaks, known), {"__module__": known.__module__})


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


class _Encoding(BatchEncoding):
    """The answer to texts with breaks. Idefics3's processor asks it for the tokens of its images."""

    places: list[list[Place]]

    def char_to_token(self, row_or_char: int, char: int | None = None, sequence_index: int = 0) -> int | None:
        row, at = (0, row_or_char) if char is None else (row_or_char, char)
        return next((n for n, (start, stop) in enumerate(self.places[row]) if start <= at < stop), None)


class _ReadsBreaks:
    """What `read_breaks` puts before a tokenizer's class."""

    def __call__(self, text: Any = None, *args: Any, **options: Any) -> Any:
        encode: Any = super().__call__  # type: ignore[misc]  # of the class that this one stands before
        texts = [text] if isinstance(text, str) else text if isinstance(text, list | tuple) else []
        if not any(isinstance(one, str) and BREAK in one for one in texts):
            return encode(text, *args, **options)
        has_places = bool(getattr(self, "is_fast", False))
        rows, places = zip(*(_row(one, encode, has_places, **options) for one in texts), strict=True)
        tensors = options.get("return_tensors")
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        if isinstance(text, str) and not tensors:
            columns = rows[0]
        answer = _Encoding(columns, tensor_type=tensors)
        answer.places = list(places)
        return answer

    def encode(self, text: Any, *args: Any, **options: Any) -> Any:
        if isinstance(text, str) and BREAK in text:
            return self(text, **options)["input_ids"]
        return super().encode(text, *args, **options)  # type: ignore[misc]


def _row(
    text: str,
    encode: Callable[..., Any],
    has_places: bool,
    *,
    add_special_tokens: bool = True,
    truncation: Any = None,
    max_length: int | None = None,
    return_tensors: Any = None,
    padding: Any = False,
    **options: Any,
) -> tuple[dict[str, list[Any]], list[Place]]:
    """One text's row of the tokenizer's answer, its pieces encoded apart, and the places of its tokens."""
    first, *others = text.split(BREAK)
    row = encode(first, add_special_tokens=False, **options)
    plain = partial(encode, add_special_tokens=False, return_offsets_mapping=has_places)
    ids, places = list(row["input_ids"]), list(plain(first)["offset_mapping"]) if has_places else []
    at = len(first)
    for piece, tokens, within in _inner(others, plain, has_places):
        at += len(BREAK)
        ids += tokens
        places += [(start + at, stop + at) for start, stop in within]
        at += len(piece)
    if add_special_tokens:
        before, after = _ends(first, row["input_ids"], encode)
        ids = [*before, *ids, *after]
        places = [*[(0, 0)] * len(before), *places, *[(0, 0)] * len(after)]
    if truncation and max_length is not None:
        ids, places = ids[:max_length], places[:max_length]
    columns: dict[str, list[Any]] = {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "token_type_ids": [0] * len(ids),
        "offset_mapping": places,
    }
    return {name: column for name, column in columns.items() if name in row}, places


def _inner(
    pieces: list[str], encode: Callable[..., Any], has_places: bool
) -> Iterator[tuple[str, list[int], list[Place]]]:
    """Each piece's tokens and their places in it, as they are within a text."""
    guard = list(encode(_GUARD)["input_ids"])
    rows = encode([_GUARD + piece for piece in pieces])
    for number, piece in enumerate(pieces):
        row, moved = {name: rows[name][number] for name in rows}, len(_GUARD)
        if row["input_ids"][: len(guard)] == guard:
            row = {name: values[len(guard) :] for name, values in row.items()}
        else:  # the guard is no token of its own there
            row, moved = encode(piece), 0
        places = row["offset_mapping"] if has_places else ()
        yield piece, row["input_ids"], [(max(0, start - moved), stop - moved) for start, stop in places]


def _ends(text: str, inside: list[int], encode: Callable[..., Any]) -> tuple[list[int], list[int]]:
    """What the tokenizer adds before and after a text."""
    whole = list(encode(text, add_special_tokens=True)["input_ids"])
    for at in range(len(whole) - len(inside) + 1):
        if whole[at : at + len(inside)] == inside:
            return whole[:at], whole[at + len(inside) :]
    return [], []

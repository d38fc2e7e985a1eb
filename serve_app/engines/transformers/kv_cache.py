"""A key-value cache whose rows come and go. It is padded left: every row's newest token is in the last column.

Works on transformers' `DynamicCache` with plain layers: keys and values of shape (rows, heads, tokens, size).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch


def join(running: Any, newcomers: Any) -> None:
    """Append the rows of `newcomers` to those of `running`, in place. On failure `running` is as before.

    Layer by layer, so that one layer at a time is in memory twice; `newcomers` is emptied on the way.
    """
    num_rows = running.layers[0].keys.shape[0]
    padding = max(0, newcomers.get_seq_length() - running.get_seq_length())

    def restore(layer: Any) -> None:  # by views: undoing must not need memory
        layer.keys, layer.values = layer.keys[:num_rows, :, padding:], layer.values[:num_rows, :, padding:]

    with ExitStack() as undo:
        for mine, theirs in zip(running.layers, newcomers.layers, strict=True):
            keys, values = _stacked(mine.keys, theirs.keys), _stacked(mine.values, theirs.values)
            mine.keys, mine.values = keys, values
            undo.callback(restore, mine)
            theirs.keys = theirs.values = None
        undo.pop_all()


def keep(cache: Any, rows: Sequence[int], padding: int = 0) -> None:
    """Keep these rows alone, in this order, without the first `padding` columns. Frees what goes."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[rows, :, padding:], layer.values[rows, :, padding:]


def _stacked(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    num_tokens = max(above.shape[2], below.shape[2])
    both = above.new_zeros(above.shape[0] + below.shape[0], above.shape[1], num_tokens, above.shape[3])
    both[: above.shape[0], :, num_tokens - above.shape[2] :] = above
    both[above.shape[0] :, :, num_tokens - below.shape[2] :] = below
    return both

"""Which waiting rows are taken together."""

import random
from typing import Any

import pytest
import torch

from serve_app.engines.transformers.answer_text import AnswerText
from serve_app.engines.transformers.batch_worker import _companions
from serve_app.engines.transformers.prompt_batch import Prompt
from serve_app.engines.transformers.row import Row, RowSampling
from tests.tiny_engine import request


def row(num_tokens: int, key: str = "text") -> Row:
    prompt = Prompt({"input_ids": torch.zeros(1, num_tokens)}, num_tokens, (key,))
    return Row(request("x"), 0, prompt, 9, RowSampling(random.Random(0)), AnswerText(str, ()), str, 0.0)


@pytest.mark.parametrize(
    ("waiting", "num_free", "max_tokens", "taken"),
    [
        ([5, 5, 5], 2, None, [0, 1]),
        ([5, 5, 5], 0, None, []),
        ([], 3, None, []),
        ([5, (5, "image"), 5], 3, None, [0, 2]),
        ([(5, "image"), 5, 5], 3, None, [0]),
        ([50, 5, 5], 3, 100, [0, 1]),  # padded to the longest: 50 + 50
        ([5, 60, 5], 3, 100, [0]),
        ([500, 5], 3, 100, [0]),  # the one that waits longest always comes in
        ([500, 500], 3, None, [0, 1]),
    ],
)
def test_what_is_taken_together(waiting: list[Any], num_free: int, max_tokens: int | None, taken: list[int]) -> None:
    rows = [row(*one) if isinstance(one, tuple) else row(one) for one in waiting]
    assert _companions(rows, num_free, max_tokens) == [rows[number] for number in taken]

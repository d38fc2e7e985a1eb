"""Rows of tokens for training: many conversations behind one picture, without seeing one another.

A row is a shared beginning (the picture, or only the first token) and branches. A branch attends to the shared
beginning and to itself, and its positions go on from the beginning's, so that each branch is exactly the
conversation that a user would have. That pays for the picture once and for many questions.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from demo_model.architecture import NUM_IMAGE_TOKENS
from demo_model.dialogues import Dialogue, about_one_picture, long_dialogue, random_dialogue
from demo_model.scenes import Scene
from demo_model.wording import BOS, EXPANDED_IMAGE, IMAGE, PAD, pieces

_NO_LABEL = -100
_PADDING_BRANCH = -1


@dataclass(slots=True)
class Row:
    tokens: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)  # the next token where the assistant says it
    branches: list[int] = field(default_factory=list)  # 0: the shared beginning
    positions: list[int] = field(default_factory=list)
    pictures: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of shape (rows, length); `mask` (rows, 1, length, length) is true where attention is allowed."""

    tokens: Tensor
    labels: Tensor
    branches: Tensor
    positions: Tensor
    mask: Tensor
    pictures: Tensor  # picture indices in the order of their image tokens


class Packer:
    def __init__(self, tokenizer: PreTrainedTokenizerFast, length: int) -> None:
        self.length = length
        self._backend = tokenizer.backend_tokenizer
        self._pad = int(tokenizer.convert_tokens_to_ids(PAD))
        self.image = int(tokenizer.convert_tokens_to_ids(IMAGE))
        self._picture_start = len(self._encoded(f"{BOS}User:\n{EXPANDED_IMAGE}"))

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def append(self, row: Row, dialogue: Dialogue, num_shared: int) -> bool:
        """Adds the dialogue as one more branch; false, and nothing added, if the row is too full for it."""
        tokens: list[int] = []
        labels: list[int] = []
        for text, is_answer in pieces(dialogue):
            ids = self._encoded(text)
            if is_answer:
                labels[-1] = ids[0]
                labels += [*ids[1:], _NO_LABEL]
            else:
                labels += [_NO_LABEL] * len(ids)
            tokens += ids
        is_first = not row.tokens
        start = 0 if is_first else num_shared
        if len(row.tokens) + len(tokens) - start > self.length:
            return False
        branch = 1 if is_first else row.branches[-1] + 1
        row.tokens += tokens[start:]
        row.labels += labels[start:]
        row.branches += [0] * (num_shared - start) + [branch] * (len(tokens) - num_shared)
        row.positions += range(start, len(tokens))
        num_shared_pictures = int(num_shared == self._picture_start)
        row.pictures += dialogue.pictures[0 if is_first else num_shared_pictures :]
        return True

    def about_picture(self, dialogues: Sequence[Dialogue]) -> Row:
        """As many of these dialogues, which begin with the same picture, as fit."""
        row = Row()
        for dialogue in dialogues:
            self.append(row, dialogue, self._picture_start)
        return row

    def one_picture_row(self, picture: int, scene: Scene | None, rng: random.Random) -> Row:
        return self._filled(lambda: about_one_picture(picture, scene, rng), self._picture_start)

    def dialogue_row(self, next_picture: Callable[[], tuple[int, Scene | None]], rng: random.Random) -> Row:
        return self._filled(lambda: random_dialogue(next_picture, rng), 1)

    def long_row(self, next_picture: Callable[[], tuple[int, Scene | None]], rng: random.Random) -> Row:
        row = Row()
        while not self.append(row, long_dialogue(next_picture, rng), 1):
            pass
        return row

    def _filled(self, make: Callable[[], Dialogue], num_shared: int) -> Row:
        row, misses = Row(), 0
        while misses < 2:
            misses += not self.append(row, make(), num_shared)
            if len(row.tokens) > self.length - 16:
                break
        return row

    def batch(self, rows: Sequence[Row]) -> Batch:
        length = max(len(row.tokens) for row in rows)
        shape = (len(rows), length)
        tokens, labels = np.full(shape, self._pad), np.full(shape, _NO_LABEL)
        branches, positions = np.full(shape, _PADDING_BRANCH), np.zeros(shape, np.int64)
        for index, row in enumerate(rows):
            end = len(row.tokens)
            tokens[index, :end], labels[index, :end] = row.tokens, row.labels
            branches[index, :end], positions[index, :end] = row.branches, row.positions
        branch = torch.from_numpy(branches)
        same = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
        mask = same & torch.ones(length, length, dtype=torch.bool).tril()
        return Batch(
            tokens=torch.from_numpy(tokens),
            labels=torch.from_numpy(labels),
            branches=branch,
            positions=torch.from_numpy(positions),
            mask=mask[:, None],
            pictures=torch.tensor([picture for row in rows for picture in row.pictures], dtype=torch.long),
        )

    def check(self, batch: Batch) -> None:
        found = int((batch.tokens == self.image).sum())
        assert found == len(batch.pictures) * NUM_IMAGE_TOKENS, "image tokens and pictures don't match"

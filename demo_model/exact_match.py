"""How much the model in training already answers word for word, on pictures that it never sees in a step."""

import random
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import torch
from transformers import Idefics3ForConditionalGeneration, PreTrainedTokenizerFast

from demo_model.asking import QUESTIONS, STYLES, caption, question
from demo_model.dialogues import Dialogue, Message
from demo_model.learning import answer_logits, mixed_precision, patch_features, right_branches
from demo_model.packing import Packer
from demo_model.pictures import decode_scene

_NUM_PICTURES = 200
_PICTURES_AT_ONCE = 10
_TOKENS_PER_KIND = 320  # of a request and its answer, at most


@torch.no_grad()
def exact_match(
    model: Idefics3ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pixels: torch.Tensor,
    scenes: np.ndarray,
) -> Mapping[str, float]:
    """The share of right greedy answers by kind of request, `shapeless` for all about pictures without shapes.

    `pixels` is pictures × height × width × RGB, `scenes` as `encode_scene` writes them.
    """
    rng = random.Random(0)
    kinds = [*STYLES, *QUESTIONS]
    packer = Packer(tokenizer, _TOKENS_PER_KIND * len(kinds))
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, _NUM_PICTURES, _PICTURES_AT_ONCE):
        rows = []
        for index in range(start, start + _PICTURES_AT_ONCE):
            scene = decode_scene(scenes[index])
            requests = [caption(k, scene) if k in STYLES else question(k, scene, rng) for k in kinds]
            rows.append(packer.about_picture([_single_turn(index, r.prompt, r.answer) for r in requests]))
        batch = packer.batch(rows)
        with mixed_precision():
            features = patch_features(model, pixels[batch.pictures])
            logits, labels = answer_logits(model, features, batch, packer.image)
        for (row, branch), is_right in right_branches(logits, labels, batch).items():
            is_shapeless = scenes[start + row][0] < 0
            right["shapeless" if is_shapeless else kinds[branch - 1]].append(is_right)
    return {kind: sum(hits) / len(hits) for kind, hits in right.items()}


def _single_turn(picture: int, prompt: str, answer: str) -> Dialogue:
    return Dialogue((Message("user", (picture, prompt)), Message("assistant", (answer,))))

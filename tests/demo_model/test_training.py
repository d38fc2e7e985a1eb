"""What the training computes by shorter ways: for each conversation the logits that transformers' forward gives."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedTokenizerFast

from demo_model.architecture import NUM_IMAGE_TOKENS, PATCHES_PER_SIDE
from demo_model.dialogues import Dialogue, Message, about_one_picture
from demo_model.drawing import render
from demo_model.learning import answer_logits, normalized, patch_features, prepare, right_branches
from demo_model.looking import HEAD, Looking
from demo_model.packing import Batch, Packer
from demo_model.patch_embedding import PatchProduct, whiten
from demo_model.pictures import encode_scene, processed_pixels
from demo_model.scenes import Scene, Shape, random_scene
from serve_app.demo import CHECKPOINT

SCENES = 6


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(CHECKPOINT)
    return tokenizer


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(1)
    return [random_scene(rng) for _ in range(SCENES)]


@pytest.fixture(scope="module")
def pixels(scenes: list[Scene]) -> torch.Tensor:
    rng = random.Random(2)
    return torch.from_numpy(np.stack([processed_pixels(render(scene, rng)) for scene in scenes]))


@pytest.fixture(scope="module")
def conversations(scenes: list[Scene]) -> list[list[Dialogue]]:
    """Three dialogues about each picture, which share a row."""
    rng = random.Random(3)
    return [[about_one_picture(index, scene, rng) for _ in range(3)] for index, scene in enumerate(scenes)]


def test_packed_conversations_have_the_logits_that_each_has_alone(
    tokenizer: PreTrainedTokenizerFast, conversations: list[list[Dialogue]], pixels: torch.Tensor
) -> None:
    packer = Packer(tokenizer, 2000)
    rows = [packer.about_picture(dialogues) for dialogues in conversations]
    packed, alone = (AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype=torch.float32) for _ in range(2))
    prepare(packed)
    batch = packer.batch(rows)
    with torch.no_grad():
        logits, _ = answer_logits(packed, patch_features(packed, pixels[batch.pictures]), batch, packer.image)
        wanted = torch.cat([_logits_alone(alone, packer, dialogues, pixels) for dialogues in conversations])
    assert logits.shape == wanted.shape
    assert torch.allclose(logits, wanted, atol=2e-3), (logits - wanted).abs().max()


def _logits_alone(model: nn.Module, packer: Packer, dialogues: list[Dialogue], pixels: torch.Tensor) -> torch.Tensor:
    found = []
    for dialogue in dialogues:
        batch = packer.batch([packer.about_picture([dialogue])])
        pictures = normalized(pixels[batch.pictures])[None]
        logits = model(input_ids=batch.tokens, pixel_values=pictures).logits
        found.append(logits[batch.labels >= 0])
    return torch.cat(found)


def test_a_right_answer_is_one_that_greedy_decoding_gives(
    tokenizer: PreTrainedTokenizerFast, conversations: list[list[Dialogue]], pixels: torch.Tensor
) -> None:
    packer = Packer(tokenizer, 2000)
    batch = packer.batch([packer.about_picture(dialogues) for dialogues in conversations])
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINT, dtype=torch.float32)
    with torch.no_grad():
        logits, labels = answer_logits(model, patch_features(model, pixels[batch.pictures]), batch, packer.image)
    branches = right_branches(logits, labels, batch)
    assert len(branches) == 3 * SCENES
    assert sum(branches.values()) > 2 * SCENES, "the shipped model knows most of these"
    wrong = torch.roll(logits, 1, dims=-1)
    assert not any(right_branches(wrong, labels, batch).values())


def test_a_patch_product_is_the_convolution_backward_too() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 8, kernel_size=16, stride=16)
    pictures = torch.rand(4, 3, 64, 48)
    results = []
    for kind in (nn.Conv2d, PatchProduct):
        layer.__class__ = kind
        layer.zero_grad()
        embedded = layer(pictures)
        embedded.square().sum().backward()
        assert layer.weight.grad is not None
        results.append((embedded.detach(), layer.weight.grad.clone()))
    for convolved, product in zip(*results, strict=True):
        assert torch.allclose(convolved, product, atol=1e-4)


def test_whitened_patches_are_uncorrelated(pixels: torch.Tensor) -> None:
    layer = nn.Conv2d(3, 8, kernel_size=16, stride=16)
    whiten(layer, normalized(pixels))
    with torch.no_grad():
        embedded = layer(normalized(pixels)).permute(0, 2, 3, 1).flatten(0, 2)
    covariance = embedded.T @ embedded / len(embedded)
    assert torch.allclose(embedded.mean(0), torch.zeros(8), atol=1e-4)
    strengths = covariance.diagonal()
    assert strengths.max() < 2 * strengths.min(), "all directions are seen alike"
    assert torch.allclose(covariance, torch.diag(strengths), atol=1e-4)


def test_words_are_trained_to_look_at_what_they_name(tokenizer: PreTrainedTokenizerFast) -> None:
    scene = Scene((Shape("circle", "red", "large", 0), Shape("star", "blue", "large", 8)), "white")
    covering = np.zeros((PATCHES_PER_SIDE, PATCHES_PER_SIDE), np.int8)
    covering[:2, :2], covering[-2:, -2:] = 1, 2
    first, last = 0, NUM_IMAGE_TOKENS - 1  # the image tokens that show them
    pictures = encode_scene(scene)[None], covering.reshape(1, -1)
    packer = Packer(tokenizer, 200)
    looking = Looking(tokenizer, packer.image)

    def batch_of(*asked: str) -> Batch:
        dialogues = [Dialogue((Message("user", (0, text)), Message("assistant", ("Yes.",)))) for text in asked]
        return packer.batch([packer.about_picture(dialogues)])

    batch = batch_of("Where is the star?", "Is there a heart?", "Hello")
    (image,) = torch.nonzero(batch.tokens[0] == packer.image, as_tuple=True)

    def loss(star: int, heart: int | None) -> float:
        """Where these words look at these image tokens; None at the row's first token."""
        attention = torch.zeros(1, 4, *batch.mask.shape[-2:])
        for word, seen in (("star", star), ("heart", heart)):
            (position,) = torch.nonzero(batch.tokens[0] == tokenizer.encode(f" {word}")[-1]).flatten()
            attention[0, HEAD, position, 0 if seen is None else image[seen]] = 1
        return float(looking.loss(attention, batch, *pictures))

    assert loss(star=last, heart=None) == pytest.approx(0, abs=1e-4)
    assert loss(star=first, heart=None) > 1, "a circle is there"
    assert loss(star=last, heart=first) > 1, "no heart is anywhere"
    nothing = batch_of("Hello")
    assert float(looking.loss(torch.zeros(1, 4, *nothing.mask.shape[-2:]), nothing, *pictures)) == 0

"""Image tokens in the language model's own words: a side task that joins the two halves.

Each image token is trained to say, through the language model's own word embeddings, the words of what it shows:
kind, color, size and place of the shape that covers most of it, else the background. What the language model reads is
then made of directions that it knows from text, so that naming and comparing are nearly copying. Used in training
only; the model that is saved has no part of it.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Idefics3ForConditionalGeneration, PreTrainedTokenizerFast

from demo_model.architecture import PATCHES_PER_SIDE, SHUFFLE
from demo_model.scenes import BACKGROUNDS, COLORS, KINDS, PLACES, SIZES

MAX_SHAPES = 3
_NOTHING = " shapes"  # what a picture without any is asked about, and told to lack
# How much of a token's target the words of each property are; kinds are the hardest to learn.
_SHARES = {"kind": 0.4, "color": 0.3, "size": 0.15, "place": 0.15}


class Alignment:
    """Targets over the vocabulary for every image token, and the loss against them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._kinds, self._colors = self._words(KINDS), self._words(COLORS)
        self._sizes, self._places = self._words(SIZES), self._words(PLACES)
        self._backgrounds = torch.cat([self._words(tuple(BACKGROUNDS)), self._words((_NOTHING.strip(),))])

    def _words(self, names: tuple[str, ...]) -> Tensor:
        """(names, vocabulary): an equal share for each token of the name, as it stands within a sentence."""
        table = torch.zeros(len(names), len(self._tokenizer))
        for row, name in enumerate(names):
            ids = self._tokenizer.encode(f" {name}", add_special_tokens=False)
            table[row, ids] = 1 / len(ids)
        return table

    def targets(self, scenes: np.ndarray, covering: np.ndarray) -> Tensor:
        """(pictures, image tokens, vocabulary), each a distribution, from the arrays of `pictures.py`."""
        shapes = torch.from_numpy(scenes[:, 1:].reshape(len(scenes), MAX_SHAPES, 4).astype(np.int64)).clamp(min=0)
        of_shapes = (
            _SHARES["kind"] * self._kinds[shapes[..., 0]]
            + _SHARES["color"] * self._colors[shapes[..., 1]]
            + _SHARES["size"] * self._sizes[shapes[..., 2]]
            + _SHARES["place"] * self._places[shapes[..., 3]]
        )
        backgrounds = torch.from_numpy(np.where(scenes[:, 0] < 0, len(BACKGROUNDS), scenes[:, 0]).astype(np.int64))
        choices = torch.cat([self._backgrounds[backgrounds][:, None], of_shapes], dim=1)  # (pictures, 1 + shapes, …)
        shown = torch.from_numpy(shown_by_token(covering))
        return choices[torch.arange(len(scenes))[:, None], shown]

    def loss(
        self, model: Idefics3ForConditionalGeneration, images: Tensor, scenes: np.ndarray, covering: np.ndarray
    ) -> Tensor:
        """Cross-entropy per image token; `images`: (pictures, image tokens, width), what the connector made."""
        if not len(images):
            return images.new_zeros((), dtype=torch.float32)
        said = functional.log_softmax(model.lm_head(model.model.text_model.norm(images)).float(), dim=-1)
        return -(self.targets(scenes, covering) * said).sum(-1).mean()


def shown_by_token(covering: np.ndarray) -> np.ndarray:
    """(pictures, image tokens): 0, or 1 + the index of the shape that covers most of the token's patches."""
    tokens_per_side = PATCHES_PER_SIDE // SHUFFLE
    blocks = covering.reshape(len(covering), tokens_per_side, SHUFFLE, tokens_per_side, SHUFFLE)
    patches = blocks.transpose(0, 1, 3, 2, 4).reshape(len(covering), tokens_per_side**2, SHUFFLE**2)
    counts = np.stack([(patches == shape).sum(-1) for shape in range(1, MAX_SHAPES + 1)], axis=-1)
    shown: np.ndarray = np.where(counts.max(-1) > 0, counts.argmax(-1) + 1, 0)
    return shown

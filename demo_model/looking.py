"""Words that look at what they name: a side task for one attention head of the language model.

Where a text has the word of a kind or a color, this head is trained to attend to the image tokens that show it, and
to the first token of all where nothing does. "What color is the circle?" is then answered by what "circle" has
fetched. Left to the answers alone, a model this small finds that out late or never, while captions go well: those
tell what is there in the pictures' own order. Used in training only; the model that is saved is an ordinary one.
"""

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from demo_model.alignment import MAX_SHAPES, shown_by_token
from demo_model.packing import Batch
from demo_model.scenes import COLORS, KINDS

LAYER, HEAD = 1, 0


class Looking:
    """What each word of a batch should look at, and the loss against it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, image_token: int) -> None:
        self._image_token = image_token
        names = [*KINDS, *COLORS]
        self._is_name = torch.zeros(len(tokenizer), len(names))
        for column, name in enumerate(names):
            self._is_name[tokenizer.encode(f" {name}", add_special_tokens=False)[-1], column] = 1

    def loss(self, attention: Tensor, batch: Batch, scenes: np.ndarray, covering: np.ndarray) -> Tensor:
        """Cross-entropy per word that is a name. `attention`: (rows, heads, length, length), of layer `LAYER`.

        `scenes` and `covering` are the batch's pictures', in their order, as `pictures.py` has them.
        """
        shown = torch.zeros(*batch.tokens.shape, self._is_name.shape[1])
        shown[batch.tokens == self._image_token] = self._names_of(scenes, covering)
        asked = self._is_name[batch.tokens]
        wanted = (asked @ shown.transpose(1, 2)) * batch.mask[:, 0]
        has_picture = ((batch.tokens == self._image_token)[:, None, :] & batch.mask[:, 0]).any(-1)
        is_asking = (asked.sum(-1) > 0) & has_picture
        if not is_asking.any():
            return attention.new_zeros((), dtype=torch.float32)
        wanted[..., 0] += (wanted.sum(-1) == 0).float()
        wanted = wanted[is_asking]
        wanted = wanted / wanted.sum(-1, keepdim=True)
        seen = attention[:, HEAD].float()[is_asking]
        return -(wanted * (seen + 1e-6).log()).sum(-1).mean()

    def _names_of(self, scenes: np.ndarray, covering: np.ndarray) -> Tensor:
        """(image tokens of all pictures, names): 1 for the kind and for the color of the shape that it shows."""
        shapes = torch.from_numpy(scenes[:, 1:].reshape(len(scenes), MAX_SHAPES, 4).astype(np.int64))
        kinds, colors = shapes[..., 0].clamp(min=0), shapes[..., 1].clamp(min=0)
        names = torch.zeros(len(scenes), 1 + MAX_SHAPES, self._is_name.shape[1])
        names[:, 1:].scatter_(2, kinds[..., None], 1)
        names[:, 1:].scatter_(2, (len(KINDS) + colors)[..., None], 1)
        shown = torch.from_numpy(shown_by_token(covering))
        return names[torch.arange(len(scenes))[:, None], shown].flatten(0, 1)

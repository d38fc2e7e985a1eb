"""What the vision tower learns before any word: for each patch the shape on it, and the background.

Linear heads on the tower's output name kind, color, size and place of the shape that covers a patch. They are
dropped when the model is saved; during the language stage they stay as a side task.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from demo_model.scenes import BACKGROUNDS, COLORS, KINDS, PLACES, SIZES

_NO_TARGET = -100
_KIND_WEIGHT = 2.0  # the hardest to learn: no caption can be better than the kinds that the tower sees
_OUTPUTS = {
    "kind": len(KINDS) + 1,  # 0: no shape on this patch
    "color": len(COLORS),
    "size": len(SIZES),
    "place": len(PLACES),
    "background": len(BACKGROUNDS) + 1,  # the last: a picture without shapes
}


def patch_targets(scenes: np.ndarray, covering: np.ndarray) -> dict[str, Tensor]:
    """Targets of shape (pictures, patches) from the arrays of `pictures.py`."""
    count, patches = covering.shape
    shapes = scenes[:, 1:].reshape(count, 3, 4).astype(np.int64)
    index = np.maximum(covering.astype(np.int64) - 1, 0)
    chosen = shapes[np.arange(count)[:, None], index]  # (pictures, patches, 4)
    is_covered = covering > 0
    chosen = np.where(is_covered[..., None], chosen, _NO_TARGET)
    background = np.where(scenes[:, 0] < 0, len(BACKGROUNDS), scenes[:, 0]).astype(np.int64)
    return {
        "kind": torch.from_numpy(np.where(is_covered, chosen[..., 0] + 1, 0)),
        "color": torch.from_numpy(chosen[..., 1].copy()),
        "size": torch.from_numpy(chosen[..., 2].copy()),
        "place": torch.from_numpy(chosen[..., 3].copy()),
        "background": torch.from_numpy(np.repeat(background[:, None], patches, axis=1)),
    }


class PatchHeads(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, sum(_OUTPUTS.values()))

    def forward(self, hidden: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The loss, and the share of right patches for each output (over covered patches)."""
        parts = self.proj(hidden).float().split(list(_OUTPUTS.values()), dim=-1)
        covered = targets["kind"] > 0
        loss = hidden.new_zeros((), dtype=torch.float32)
        right: dict[str, float] = {}
        for name, logits in zip(_OUTPUTS, parts, strict=True):
            target = targets[name]
            if name == "kind":
                loss = loss + 0.5 * functional.cross_entropy(logits[~covered], target[~covered])
                loss = loss + _KIND_WEIGHT * functional.cross_entropy(logits[covered], target[covered])
            elif name == "background":
                loss = loss + 0.5 * functional.cross_entropy(logits.mean(dim=1), target[:, 0])
            else:
                loss = loss + functional.cross_entropy(logits[covered], target[covered])
            with torch.no_grad():
                guess = (logits.mean(dim=1, keepdim=True) if name == "background" else logits).argmax(-1)
                hit = (guess == target)[covered] if name != "background" else (guess == target[:, :1])
                right[name] = hit.float().mean().item()
        return loss, right

"""The vision tower's first layer in training: a matrix product, begun at the whitening of the training patches.

Neighboring pixels say almost the same, so random first weights show the tower a picture's brightness above all.
Weights that whiten the patches (Page, "How to train your ResNet", 2018; Jordan, arXiv:2404.00498) show it every
detail at the same strength, and shapes' kinds are learned sooner (figures in `benchmarks/LOG.md`).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

NUM_PICTURES = 2000  # to estimate the covariance of patches: 64 of each
_NOISE = 0.05  # added to variances (the largest are 10 to 400), so that what is noise isn't amplified
_SCALE = 0.3  # of the whitened patch: beside a larger one the tower doesn't see the position embedding


class PatchProduct(nn.Conv2d):
    """A convolution whose stride is its kernel, as the matrix product that it is: CPUs compute it faster."""

    def forward(self, input: Tensor) -> Tensor:
        """(pictures, 3, height, width) → (pictures, width of the tower, rows, columns)."""
        patches = _patches(input, self.kernel_size[0])
        count, rows, columns, _ = patches.shape
        embedded = functional.linear(patches, self.weight.flatten(1), self.bias)
        return embedded.permute(0, 3, 1, 2).reshape(count, -1, rows, columns)


def _patches(pixels: Tensor, side: int) -> Tensor:
    """(pictures, channels, height, width) → (pictures, rows, columns, channels · side · side)."""
    count, channels, height, width = pixels.shape
    blocks = pixels.reshape(count, channels, height // side, side, width // side, side)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(count, height // side, width // side, -1)


@torch.no_grad()
def whiten(layer: nn.Conv2d, pixels: Tensor) -> None:
    """Set the weights so that patches of these pictures come out uncorrelated, all directions equally strong.

    `pixels`: (pictures, 3, height, width), normalized as the model gets them.
    """
    patches = _patches(pixels, layer.kernel_size[0]).flatten(0, 2)
    mean = patches.mean(0)
    centered = patches - mean
    variances, directions = torch.linalg.eigh(centered.T @ centered / len(patches))
    variances, directions = variances[-layer.out_channels :], directions[:, -layer.out_channels :]
    weight = _SCALE * directions.T / torch.sqrt(variances + _NOISE)[:, None]
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(-weight @ mean)

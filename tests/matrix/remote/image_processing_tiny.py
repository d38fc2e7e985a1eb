# mypy: ignore-errors
"""xGen-MM's image processor in small: an image whole, and, where it is much wider than high, in two halves."""

import numpy as np
import torch
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor


class XGenMMImageProcessor(BaseImageProcessor):
    def __init__(self, size=32, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def __call__(self, images, return_tensors="pt", image_aspect_ratio="anyres", **kwargs):
        assert image_aspect_ratio == "anyres"
        return BatchFeature({"pixel_values": torch.stack([self._patches(image) for image in images])})

    def _patches(self, image):
        width, height = image.size
        halves = [(0, 0, width // 2, height), (width // 2, 0, width, height)] if width > 1.5 * height else []
        parts = [image, *(image.crop(half) for half in halves)]
        arrays = [np.array(part.convert("RGB").resize((self.size, self.size))) for part in parts]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1

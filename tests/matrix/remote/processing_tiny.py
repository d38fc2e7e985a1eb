# mypy: ignore-errors
"""MiniCPM's processor in small: pads prompts left, cuts images into patches, says where their tokens stand."""

import numpy as np
import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

PLACEHOLDER = "(<image>./</image>)"


class TinyMiniCPMProcessor(ProcessorMixin):
    def __init__(self, tokenizer=None, query_num=16, image_size=32, patch_size=8, **kwargs):
        super().__init__(tokenizer)
        self.query_num, self.image_size, self.patch_size = query_num, image_size, patch_size

    def __call__(self, text=None, images=None, return_tensors="pt", max_length=None, **kwargs):
        token_ids = [self._ids(prompt, len(given)) for prompt, given in zip(text, images, strict=True)]
        longest = max(len(ids) for ids in token_ids)
        pad = self.tokenizer.pad_token_id
        rows = [[pad] * (longest - len(ids)) + ids for ids in token_ids]
        mask = [[0] * (longest - len(ids)) + [1] * len(ids) for ids in token_ids]
        images = [self._patches(image) for given in images for image in given]
        return BatchFeature({
            "input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask),
            "pixel_values": torch.stack(images) if images else None,
        })  # fmt: skip

    def _ids(self, prompt, num_images):
        pieces = prompt.split(PLACEHOLDER)
        assert len(pieces) == num_images + 1, "a placeholder for each image"
        unknown = self.tokenizer.convert_tokens_to_ids("<image>")
        ids = self.tokenizer(pieces[0])["input_ids"]
        for piece in pieces[1:]:
            ids = ids + [unknown] * self.query_num + self.tokenizer(piece)["input_ids"]
        return ids

    def _patches(self, image):
        size, patch = self.image_size, self.patch_size
        pixels = torch.from_numpy(np.array(image.convert("RGB").resize((size, size)))).float() / 127.5 - 1
        patches = pixels.unfold(0, patch, patch).unfold(1, patch, patch)
        return patches.reshape((size // patch) ** 2, -1)

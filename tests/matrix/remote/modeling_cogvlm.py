# mypy: ignore-errors
"""CogVLM's conventions in small: it makes its own inputs, and takes images as a list for each row."""

import numpy as np
import torch
from transformers import LlamaForCausalLM

from .configuration_tiny import TinyCogVLMConfig

LANGUAGE, VISION = 0, 1


class CogVLMForCausalLM(LlamaForCausalLM):
    config_class = TinyCogVLMConfig

    def __init__(self, config):
        super().__init__(config)
        self.vision = torch.nn.Linear(3 * config.vision_config["patch_size"] ** 2, config.hidden_size)
        self.post_init()

    def forward(self, input_ids=None, images=None, token_type_ids=None, **kwargs):
        if not images:
            return super().forward(input_ids=input_ids, **kwargs)
        assert len(input_ids) == len(images)
        patches = torch.cat([self._patches(image) for images in images for image in images])
        embeds = self.get_input_embeddings()(input_ids)
        embeds = embeds.masked_scatter((token_type_ids == VISION).unsqueeze(-1), self.vision(patches))
        return super().forward(inputs_embeds=embeds, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids, images=None, token_type_ids=None, attention_mask=None, **kwargs
    ):
        inputs = super().prepare_inputs_for_generation(input_ids, attention_mask=attention_mask, **kwargs)
        is_prompt = inputs["input_ids"].shape[1] > 1
        return inputs | ({"images": images, "token_type_ids": token_type_ids} if is_prompt else {})

    def build_conversation_input_ids(self, tokenizer, *, query, history=None, images=None, template_version=None):
        assert (template_version or self.config.template_version) == "chat"
        assert images is None or len(images) == 1, "one image"
        text = "".join(f" [INST] {asked} [/INST] {answered}" for asked, answered in history or [])
        text_ids = tokenizer.encode(f"{text} [INST] {query} [/INST] ", add_special_tokens=False)
        size, patch = self.config.vision_config["image_size"], self.config.vision_config["patch_size"]
        num_patches = (size // patch) ** 2 if images else 0
        ids = [tokenizer.bos_token_id] + [tokenizer.pad_token_id] * num_patches + text_ids
        return {
            "input_ids": torch.tensor(ids),
            "token_type_ids": torch.tensor([LANGUAGE] + [VISION] * num_patches + [LANGUAGE] * len(text_ids)),
            "attention_mask": torch.ones(len(ids), dtype=torch.long),
            "images": [self._pixels(images[0], size)] if images else None,
        }

    def _pixels(self, image, size):
        pixels = torch.from_numpy(np.array(image.convert("RGB").resize((size, size)))).float() / 127.5 - 1
        return pixels.permute(2, 0, 1)

    def _patches(self, pixels):
        patch = self.config.vision_config["patch_size"]
        patches = pixels.unfold(1, patch, patch).unfold(2, patch, patch)
        return patches.permute(1, 2, 0, 3, 4).reshape(-1, 3 * patch**2)

# mypy: ignore-errors
"""xGen-MM's conventions in small: special tokens by `update_special_tokens`, answers of its `vlm.lang_model` only."""

import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from .configuration_tiny import TinyXGenMMConfig


class XGenMMPerceiver(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.special_tokens = {
            "media_token": "<image>", "image_placeholder_token": "<image placeholder>",
            "end_of_trunk_token": "<|endofchunk|>",
        }  # fmt: skip
        self.num_tokens_per_vis = config.num_vis_tokens
        self.lang_model = LlamaForCausalLM(config.text_config)
        width = 3 * config.image_size**2 // config.num_vis_tokens
        self.vision_tokenizer = torch.nn.Linear(width, config.text_config.hidden_size)

    def set_special_token_ids(self, string_to_ids):
        self.media_token_id = string_to_ids["<image>"]

    def generate(self, vision_x, lang_x, image_size=None, attention_mask=None, **kwargs):
        if vision_x is None:
            return self.lang_model.generate(input_ids=lang_x, attention_mask=attention_mask, **kwargs)
        assert [len(one) for one in vision_x] == [len(one) for one in image_size], "a size for each image"
        rows = [self._fused(ids, images) for ids, images in zip(lang_x, vision_x, strict=True)]
        longest = max(len(row) for row in rows)
        embeds = torch.stack([torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rows])
        lengths = torch.tensor([[len(row)] for row in rows], device=embeds.device)
        mask = (torch.arange(longest, device=embeds.device) >= longest - lengths).long()
        return self.lang_model.generate(inputs_embeds=embeds, attention_mask=mask, **kwargs)

    def _fused(self, ids, images):
        """Each image's token gives way to the tokens of all its patches."""
        left, pieces = iter(images), []
        for index, embed in zip(ids, self.lang_model.get_input_embeddings()(ids), strict=True):
            pieces.append(self._seen(next(left)) if index == self.media_token_id else embed[None])
        return torch.cat(pieces)

    def _seen(self, pixels):
        patches = pixels.reshape(-1, self.vision_tokenizer.in_features)  # (1, patches, colours, height, width)
        return self.vision_tokenizer(patches)


class XGenMMModelForConditionalGeneration(PreTrainedModel):
    config_class = TinyXGenMMConfig

    def __init__(self, config):
        super().__init__(config)
        self.vlm = XGenMMPerceiver(config)
        self.post_init()

    def _init_weights(self, module):
        pass

    @torch.no_grad()
    def generate(self, pixel_values, input_ids=None, attention_mask=None, **kwargs):
        return self.vlm.generate(vision_x=pixel_values, lang_x=input_ids, attention_mask=attention_mask, **kwargs)

    def update_special_tokens(self, tokenizer):
        tokenizer.add_special_tokens({"additional_special_tokens": list(self.vlm.special_tokens.values())})
        self.vlm.lang_model.config.vocab_size = len(tokenizer)
        names = self.vlm.special_tokens.values()
        self.vlm.set_special_token_ids({name: tokenizer.convert_tokens_to_ids(name) for name in names})
        return tokenizer

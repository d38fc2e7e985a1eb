"""xGen-MM (BLIP-3): an image processor and a tokenizer without a processor, and a prompt that the card writes out.

`model.update_special_tokens(tokenizer)` gives the tokenizer its image token. For each conversation `generate` takes a
list of images' tensors and a list of their sizes, and answers with new tokens only
(huggingface.co/Salesforce/xgen-mm-phi3-mini-instruct-interleave-r-v1.5).
"""

from typing import Any

import torch
from transformers import AutoImageProcessor

from serve_app.engines.transformers.remote.model import OwnPrompt, RemoteModel, Turn, images_of

_SYSTEM = (
    "<|system|>\nA chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions.<|end|>\n"
)
_END_OF_TURN = "<|end|>"


class XGenMmModel(RemoteModel):
    placeholder = "<image>"

    def __init__(self, model: Any, source: str, hub_options: dict[str, Any]) -> None:
        super().__init__(model, source, hub_options)
        self._image_processor = AutoImageProcessor.from_pretrained(source, **hub_options)
        self.tokenizer = model.update_special_tokens(self.tokenizer)
        self.generation_config = model.vlm.lang_model.generation_config

    @property
    def eos_ids(self) -> frozenset[int]:
        vocabulary = self.tokenizer.get_vocab()
        return super().eos_ids | ({vocabulary[_END_OF_TURN]} if _END_OF_TURN in vocabulary else set())

    def own_prompt(self, turns: list[Turn]) -> OwnPrompt:
        images = images_of(turns)
        prompt = _SYSTEM + "".join(_spelled(turn) for turn in turns) + "<|assistant|>\n"
        inputs = dict(self.tokenizer([prompt], return_tensors="pt"))
        pixels = [
            self._image_processor([image], return_tensors="pt", image_aspect_ratio="anyres")["pixel_values"]
            for image in images
        ]
        inputs |= {"pixel_values": pixels, "image_size": [image.size for image in images]}
        num_patches = sum(tensor.shape[-4] for tensor in pixels)
        num_tokens = inputs["input_ids"].shape[1] - len(images) + num_patches * self.vlm.num_tokens_per_vis
        return OwnPrompt(inputs, num_tokens, (object(),))  # alone: no card shows a batch of them

    def generate(self, own_prompts: list[dict[str, Any]], max_new_tokens: int, **controls: Any) -> None:
        """All prompts are the same one, repeated for each of its answers."""
        pixels = [[tensor.to(self.device, self.dtype) for tensor in inputs["pixel_values"]] for inputs in own_prompts]
        self._model.generate(
            input_ids=torch.cat([inputs["input_ids"] for inputs in own_prompts]).to(self.device),
            attention_mask=torch.cat([inputs["attention_mask"] for inputs in own_prompts]).to(self.device),
            pixel_values=pixels if pixels[0] else None,
            image_size=[inputs["image_size"] for inputs in own_prompts],
            max_new_tokens=max_new_tokens,
            **controls,
        )


def _spelled(turn: Turn) -> str:
    content = "\n".join(part if isinstance(part, str) else XGenMmModel.placeholder for part in turn["content"])
    return f"<|{turn['role']}|>\n{content}{_END_OF_TURN}\n"

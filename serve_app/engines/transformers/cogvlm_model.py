"""CogVLM's and CogVLM2's own way: the model itself makes a conversation's inputs, and takes images as lists.

`model.build_conversation_input_ids(tokenizer, query=…, history=…, images=…)` gives one conversation's ids, token
types, mask and image; a batch of them is padded left, with the images as a list for each row
(huggingface.co/THUDM/cogvlm-chat-hf, and the batched demo of github.com/THUDM/CogVLM2).
"""

from typing import Any

import torch

from serve_app.checkpoints.architectures import Architecture
from serve_app.engines.transformers.remote_model import OwnPrompt, RemoteModel, Turn

_ALONG_THE_PROMPT = ("input_ids", "token_type_ids", "attention_mask")


class CogVlmModel(RemoteModel):
    architecture = Architecture(image_limit=1)

    def own_prompt(self, turns: list[Turn]) -> OwnPrompt:
        """The last turn is the query, all before it the history, a pair of texts for each question and answer."""
        if turns[-1]["role"] != "user":
            raise ValueError("it answers to the user: let the conversation end with the user's turn")
        texts = ["\n".join(part for part in turn["content"] if isinstance(part, str)) for turn in turns]
        images = [part for turn in turns for part in turn["content"] if not isinstance(part, str)]
        inputs = self.build_conversation_input_ids(
            self.tokenizer,
            query=texts[-1],
            history=list(zip(texts[0:-1:2], texts[1:-1:2], strict=True)),
            images=images or None,
        )
        # A batch is all with an image or all without: nothing published mixes them.
        return OwnPrompt(inputs, len(inputs["input_ids"]), (bool(images),))

    def generate(self, own_prompts: list[dict[str, Any]], max_new_tokens: int, **controls: Any) -> None:
        longest = max(len(inputs["input_ids"]) for inputs in own_prompts)
        padding = {"input_ids": self.tokenizer.pad_token_id or 0, "token_type_ids": 0, "attention_mask": 0}
        batch = {
            name: torch.stack([_padded(inputs[name], longest, padding[name]) for inputs in own_prompts])
            for name in _ALONG_THE_PROMPT
        }
        self._model.generate(
            **{name: tensor.to(self.device) for name, tensor in batch.items()},
            images=self._images(own_prompts),
            max_new_tokens=max_new_tokens,
            **controls,
        )

    def _images(self, own_prompts: list[dict[str, Any]]) -> list[list[torch.Tensor]] | None:
        if not own_prompts[0]["images"]:
            return None
        return [[image.to(self.device, self.dtype) for image in inputs["images"]] for inputs in own_prompts]


def _padded(row: torch.Tensor, length: int, value: int) -> torch.Tensor:
    return torch.nn.functional.pad(row, (length - len(row), 0), value=value)

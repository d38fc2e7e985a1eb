"""CogVLM and CogVLM2: the model makes a conversation's inputs, and takes images as lists.

`model.build_conversation_input_ids(tokenizer, query=…, history=…, images=…)` gives the ids, token types, mask and
image of one conversation. A batch is padded left, with a list of images for each row
(huggingface.co/THUDM/cogvlm-chat-hf, and the batched demo of github.com/THUDM/CogVLM2).
"""

from typing import Any

from torch import stack
from torch.nn.functional import pad

from serve_app.checkpoints.architectures import Architecture
from serve_app.engines.transformers.remote.model import OwnPrompt, RemoteModel, Turn, images_of, text_of


class CogVlmModel(RemoteModel):
    architecture = Architecture(image_limit=1)

    def own_prompt(self, turns: list[Turn]) -> OwnPrompt:
        """The last turn is the query. All before it are the history, a pair of texts for each question and answer."""
        if turns[-1]["role"] != "user":
            raise ValueError("it answers to the user: let the conversation end with the user's turn")
        texts = [text_of(turn) for turn in turns]
        images = images_of(turns)
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
            name: stack([pad(inputs[name], (longest - len(inputs[name]), 0), value=value) for inputs in own_prompts])
            for name, value in padding.items()
        }
        images = [[image.to(self.device, self.dtype) for image in inputs["images"] or ()] for inputs in own_prompts]
        self._model.generate(
            **{name: tensor.to(self.device) for name, tensor in batch.items()},
            images=images if images[0] else None,
            max_new_tokens=max_new_tokens,
            **controls,
        )

"""A checkpoint in use, loaded as any user of transformers would: greedy answers to batches of conversations.

Nothing here knows how the model was made. Used by the evaluation and by the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from demo_model.dialogues import Message


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages up to the wanted answer, and the pictures they name, in their order."""

    messages: tuple[Message, ...]
    pictures: tuple[Image.Image, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    has_ended: bool  # by its own end token, not by the limit


class LoadedModel:
    def __init__(self, folder: Path) -> None:
        self._processor = AutoProcessor.from_pretrained(folder)
        self._model = AutoModelForImageTextToText.from_pretrained(folder).eval()

    def answers(
        self, conversations: Sequence[Conversation], *, batch_size: int = 100, max_new_tokens: int = 96
    ) -> list[Answer]:
        """One answer per conversation, in order; batches hold either only text or only pictures."""
        found: dict[int, Answer] = {}
        for has_pictures in (True, False):
            chosen = [i for i, one in enumerate(conversations) if bool(one.pictures) is has_pictures]
            for start in range(0, len(chosen), batch_size):
                indices = chosen[start : start + batch_size]
                batch = self._batch([conversations[i] for i in indices], max_new_tokens)
                found.update(zip(indices, batch, strict=True))
        return [found[i] for i in range(len(conversations))]

    @torch.inference_mode()
    def _batch(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[Answer]:
        texts = [
            self._processor.apply_chat_template(_as_openai(one.messages), add_generation_prompt=True, tokenize=False)
            for one in conversations
        ]
        pictures = [list(one.pictures) for one in conversations] if conversations[0].pictures else None
        inputs = self._processor(text=texts, images=pictures, padding=True, return_tensors="pt")
        tokens = self._model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        end = self._processor.tokenizer.eos_token_id
        return [
            Answer(self._processor.tokenizer.decode(row, skip_special_tokens=True), end in row.tolist())
            for row in tokens[:, inputs["input_ids"].shape[1] :]
        ]


def _as_openai(messages: Sequence[Message]) -> list[dict[str, Any]]:
    return [
        {
            "role": message.role,
            "content": [
                {"type": "image"} if isinstance(part, int) else {"type": "text", "text": part}
                for part in message.parts
            ],
        }
        for message in messages
    ]


def about(picture: Image.Image, prompt: str) -> Conversation:
    """One picture and one request."""
    return Conversation((Message("user", (0, prompt)),), (picture,))

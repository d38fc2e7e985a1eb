"""MiniCPM-V 2.6's and MiniCPM-o 2.6's own `chat` in the dress of `generate`.

These models are remote code whose `generate` takes prepared pieces of its own making; what their cards promise is
`model.chat(image=None, msgs=…, tokenizer=…, processor=…, sampling=…)`, a list of conversations at a time, of turns
whose content is a list of texts and pictures (huggingface.co/openbmb/MiniCPM-o-2_6). Inside it, their language
model `llm` generates: that is where the worker's steps are hooked in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

OWN_PLACEHOLDER = "<image>"  # a part of what their `chat` writes for each picture, and counts


class ChatModel:
    """Delegates everything to the model but `generate`, which chats."""

    def __init__(self, model: Any, tokenizer: Any, processor: Any) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._processor = processor
        self.generation_config = model.llm.generation_config
        self.terminator_ids = [tokenizer.convert_tokens_to_ids(name) for name in model.terminators]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, msgs: list[list[dict[str, Any]]], max_new_tokens: int, **controls: Any) -> None:
        """The answers go to the stopping criteria in `controls`, token by token; the text that comes back is unused.

        `sampling=False` means three beams and a penalty there unless the arguments say otherwise.
        """
        with self._controlled(controls):
            self._model.chat(
                image=None,
                msgs=msgs,
                tokenizer=self._tokenizer,
                processor=self._processor,
                sampling=False,
                num_beams=1,
                repetition_penalty=1.0,
                max_new_tokens=max_new_tokens,
                max_inp_length=self._model.config.max_position_embeddings,
            )

    @contextmanager
    def _controlled(self, controls: dict[str, Any]) -> Iterator[None]:
        """While it chats, the language model's `generate` gets `controls` on top of what `chat` hands it."""
        language = self._model.llm
        generate = language.generate
        language.generate = lambda *args, **given: generate(*args, **{**given, **controls})
        try:
            yield
        finally:
            del language.generate

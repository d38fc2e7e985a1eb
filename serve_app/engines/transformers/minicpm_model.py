"""MiniCPM-V 2.6's and MiniCPM-o 2.6's own `chat` in the dress of `generate`.

Their `generate` takes prepared pieces of its own making; what their cards promise is
`model.chat(image=None, msgs=…, tokenizer=…, processor=…, sampling=…)`, a list of conversations at a time, of turns
whose content is a list of texts and images (huggingface.co/openbmb/MiniCPM-o-2_6). Inside it, their language
model `llm` generates: that is where the worker's steps are hooked in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoProcessor

from serve_app.engines.transformers.remote_model import OwnPrompt, RemoteModel, Turn


class MiniCpmModel(RemoteModel):
    placeholder = "<image>"  # a part of what their `chat` writes for each image, and counts

    def __init__(self, model: Any, source: str, common: dict[str, Any]) -> None:
        super().__init__(model, source, common)
        self._processor = AutoProcessor.from_pretrained(source, **common)
        self.tokenizer = self._processor.tokenizer
        self.generation_config = model.llm.generation_config

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.convert_tokens_to_ids(name) for name in self.terminators)

    def own_prompt(self, turns: list[Turn]) -> OwnPrompt:
        """The turns themselves: `chat` prepares them. An image that it slices has more tokens than are told."""
        texts = [
            {"role": turn["role"], "content": "\n".join(part for part in turn["content"] if isinstance(part, str))}
            for turn in turns
        ]
        num_images = sum(not isinstance(part, str) for turn in turns for part in turn["content"])
        text = self.tokenizer.apply_chat_template(texts, tokenize=False, add_generation_prompt=True)
        num_tokens = len(self.tokenizer(text)["input_ids"]) + num_images * int(self.config.query_num)
        return OwnPrompt(turns, num_tokens)

    def generate(self, own_prompts: list[list[Turn]], max_new_tokens: int, **controls: Any) -> None:
        """`sampling=False` means three beams and a penalty there unless the arguments say otherwise."""
        with self._controlled(controls):
            self._model.chat(
                image=None,
                msgs=own_prompts,
                tokenizer=self.tokenizer,
                processor=self._processor,
                sampling=False,
                num_beams=1,
                repetition_penalty=1.0,
                max_new_tokens=max_new_tokens,
                max_inp_length=self.config.max_position_embeddings,
            )

    @contextmanager
    def _controlled(self, controls: dict[str, Any]) -> Iterator[None]:
        """While it chats, the language model's `generate` gets `controls` on top of what `chat` hands it."""
        language = self._model.llm
        generate = language.generate
        language.generate = lambda *args, **options: generate(*args, **{**options, **controls})
        try:
            yield
        finally:
            del language.generate

"""MiniCPM-V 2.6 and MiniCPM-o 2.6: `generate` in terms of their `chat`.

Their `generate` takes prepared pieces of its own making. What their cards promise is
`model.chat(image=None, msgs=…, tokenizer=…, processor=…, sampling=…)` for a list of conversations, whose turns have
a list of texts and images as content (huggingface.co/openbmb/MiniCPM-o-2_6). `chat` lets the language model `llm`
generate, and that call gets the worker's controls.
"""

from typing import Any

from transformers import AutoProcessor

from serve_app.engines.transformers.remote.model import OwnPrompt, RemoteModel, Turn, images_of, text_of


class MiniCpmModel(RemoteModel):
    placeholder = "<image>"  # a part of what their `chat` writes for each image, and counts

    def __init__(self, model: Any, source: str, hub_options: dict[str, Any]) -> None:
        super().__init__(model, source, hub_options)
        self._processor = AutoProcessor.from_pretrained(source, **hub_options)
        self.tokenizer = self._processor.tokenizer
        self.generation_config = model.llm.generation_config

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.convert_tokens_to_ids(name) for name in self.terminators)

    def own_prompt(self, turns: list[Turn]) -> OwnPrompt:
        """The turns themselves: `chat` prepares them. An image that it slices has more tokens than this counts."""
        texts = [{"role": turn["role"], "content": text_of(turn)} for turn in turns]
        text = self.tokenizer.apply_chat_template(texts, tokenize=False, add_generation_prompt=True)
        num_image_tokens = len(images_of(turns)) * int(self.config.query_num)
        return OwnPrompt(turns, len(self.tokenizer(text)["input_ids"]) + num_image_tokens)

    def generate(self, own_prompts: list[list[Turn]], max_new_tokens: int, **controls: Any) -> None:
        """`sampling=False` means three beams and a penalty there unless the arguments say otherwise."""
        language_model = self._model.llm
        own_generate = language_model.generate
        language_model.generate = lambda *args, **options: own_generate(*args, **{**options, **controls})
        try:
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
        finally:
            del language_model.generate

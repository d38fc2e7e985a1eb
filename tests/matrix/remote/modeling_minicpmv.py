# mypy: ignore-errors
"""MiniCPM-V 2.6's conventions in small: `chat`, a `generate` that takes the tokenizer, a language model `llm`."""

from copy import deepcopy

import torch
from PIL import Image
from transformers import LlamaForCausalLM, PreTrainedModel

from .configuration_tiny import TinyMiniCPMVConfig


class MiniCPMV(PreTrainedModel):
    config_class = TinyMiniCPMVConfig

    def __init__(self, config):
        super().__init__(config)
        self.llm = LlamaForCausalLM(config)
        self.resampler = torch.nn.Linear(3 * config.patch_size**2, config.hidden_size)
        self.terminators = ["</s>"]
        self.post_init()

    def _init_weights(self, module):
        pass

    def generate(self, input_ids, pixel_values, attention_mask, tokenizer, decode_text=False, **kwargs):
        embeds = self.llm.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            mask = (input_ids == tokenizer.convert_tokens_to_ids("<image>")).unsqueeze(-1)
            embeds = embeds.masked_scatter(mask, self.resampler(pixel_values.to(embeds.dtype)).to(embeds))
        terminators = [tokenizer.convert_tokens_to_ids(name) for name in self.terminators]
        output = self.llm.generate(
            inputs_embeds=embeds, attention_mask=attention_mask, pad_token_id=0, eos_token_id=terminators, **kwargs
        )
        return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in output] if decode_text else output

    def chat(
        self, image, msgs, tokenizer, processor=None, vision_hidden_states=None, max_new_tokens=2048,
        min_new_tokens=0, sampling=True, max_inp_length=8192, system_prompt="", stream=False, max_slice_nums=None,
        use_image_id=None, **kwargs,
    ):  # fmt: skip
        batched = isinstance(msgs[0], list)
        assert not (batched and image is not None), "Please integrate image to msgs when using batch inference."
        prompts, images = [], []
        for conversation in msgs if batched else [msgs]:
            conversation, given = deepcopy(conversation), []
            for number, turn in enumerate(conversation):
                assert turn["role"] in ("user", "assistant")
                assert number or turn["role"] == "user", "The role of first msg should be user"
                content = [turn["content"]] if isinstance(turn["content"], str) else turn["content"]
                given += [part for part in content if isinstance(part, Image.Image)]
                turn["content"] = "\n".join(p if isinstance(p, str) else "(<image>./</image>)" for p in content)
            template = processor.tokenizer.apply_chat_template
            prompts.append(template(conversation, tokenize=False, add_generation_prompt=True))
            images.append(given)
        inputs = processor(prompts, images, return_tensors="pt", max_length=max_inp_length).to(self.device)
        if sampling:
            settings = {"top_p": 0.8, "top_k": 100, "temperature": 0.7, "do_sample": True, "repetition_penalty": 1.05}
        else:
            settings = {"num_beams": 3, "repetition_penalty": 1.2}
        settings.update((key, kwargs[key]) for key in settings.keys() & kwargs.keys())
        with torch.inference_mode():
            answers = self.generate(
                **inputs, tokenizer=tokenizer, max_new_tokens=max_new_tokens, decode_text=True, **settings
            )
        return answers if batched else answers[0]

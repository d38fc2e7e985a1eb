"""The models that every system serves: a tiny text model, built here, and the demo model of this project.

The text model is a random Llama (2 layers, 128 wide, bfloat16) that never ends by itself and says only whole words of
plain ASCII, so that every token is one event of text in every system and every answer has the length asked for.
"""

import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.serving.engine import CONTEXT_LENGTH
from serve_app.demo import CHECKPOINT

NUM_PROMPTS = 1024
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tiny_text_model(folder: Path) -> Path:
    """The text model's folder; built where it is missing."""
    if (folder / "done").exists():
        return folder
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    tokenizer.chat_template = _CHAT_TEMPLATE
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=1024, hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, head_dim=32, max_position_embeddings=CONTEXT_LENGTH, tie_word_embeddings=False,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3,
        )
    ).to(torch.bfloat16)  # fmt: skip
    silent = [token for token in range(1024) if not _is_plain_word(tokenizer.decode([token]))]
    with torch.no_grad():
        model.lm_head.weight[silent] = 0  # a logit of 0, and some of a thousand others are always above
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _forget_images(folder / "tokenizer_config.json")
    (folder / "done").touch()
    return folder


def _forget_images(tokenizer_config: Path) -> None:
    """The tokenizer came from a model with images, whose processor `transformers serve` would look for."""
    values = json.loads(tokenizer_config.read_text())
    values.pop("processor_class", None)
    tokenizer_config.write_text(json.dumps(values))


def _is_plain_word(text: str) -> bool:
    return len(text) > 1 and text.isascii() and text.isprintable() and text.strip(" ").isalpha()


def demo_model() -> Path:
    return Path(CHECKPOINT)


def prompts() -> list[str]:
    """Different short questions, some thirty tokens each."""
    things = ("circle", "square", "triangle", "star", "image", "colour", "shape", "background")
    return [f"Question {n}: what is a {things[n % 8]} beside a {things[n // 8 % 8]}?" for n in range(NUM_PROMPTS)]

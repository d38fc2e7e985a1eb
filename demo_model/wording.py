"""From conversations to text and tokens: the chat template, the tokenizer and the processor.

`pieces` writes the same text as the Jinja template and keeps apart what the model has to say (a test compares
the two). The tokenizer is a byte-level BPE trained on the project's own words, so any text round-trips.
"""

import random
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Idefics3Processor, PreTrainedTokenizerFast

from demo_model.architecture import CONTEXT_LENGTH, NUM_IMAGE_TOKENS, VOCABULARY_SIZE, image_processor
from demo_model.dialogues import Dialogue, about_one_picture, random_dialogue
from demo_model.scenes import random_scene

BOS, EOS, PAD = "<|im_start|>", "<end_of_utterance>", "<|endoftext|>"
IMAGE, AROUND_IMAGE, GLOBAL_IMAGE = "<image>", "<fake_token_around_image>", "<global-img>"
# The names that transformers and vLLM expect of an Idefics3 tokenizer; the grid is for split pictures.
SPECIAL_TOKENS = (
    PAD, BOS, EOS, AROUND_IMAGE, IMAGE, GLOBAL_IMAGE,
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)  # fmt: skip
EXPANDED_IMAGE = AROUND_IMAGE + GLOBAL_IMAGE + IMAGE * NUM_IMAGE_TOKENS + AROUND_IMAGE

CHAT_TEMPLATE = (
    "<|im_start|>"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}:\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% elif message['content'] is not none %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] in ['image', 'image_url'] %}<image>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "<end_of_utterance>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)


def pieces(dialogue: Dialogue) -> Iterator[tuple[str, bool]]:
    """The dialogue's text in pieces; true for those that the assistant says, end token included."""
    text = BOS
    for message in dialogue.messages:
        text += f"{message.role.capitalize()}:\n"
        content = "".join(EXPANDED_IMAGE if isinstance(part, int) else part for part in message.parts)
        if message.role == "assistant":
            yield text, False
            yield content + EOS, True
            text = "\n"
        else:
            text += f"{content}{EOS}\n"


def _corpus(seed: int, count: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(count):
        scenes = [random_scene(rng) for _ in range(2)]
        for dialogue in (
            about_one_picture(0, scenes[0], rng),
            random_dialogue(lambda scenes=scenes: (1, scenes[1]), rng),  # type: ignore[misc]  # a lambda with a default
        ):
            for message in dialogue.messages:
                yield "".join(part for part in message.parts if isinstance(part, str))
            yield "\nUser:\nAssistant:\nSystem:\n"


def train_tokenizer(seed: int = 0, count: int = 20_000) -> PreTrainedTokenizerFast:
    """A byte-level BPE over what people ask and the model answers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed, count), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[AROUND_IMAGE, IMAGE, EOS, GLOBAL_IMAGE, *SPECIAL_TOKENS[6:]],
        model_max_length=CONTEXT_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> Idefics3Processor:
    return Idefics3Processor(
        image_processor(), tokenizer, image_seq_len=NUM_IMAGE_TOKENS, chat_template=CHAT_TEMPLATE
    )


def token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The ids that the model's configuration names."""
    names = {"image": IMAGE, "bos": BOS, "eos": EOS, "pad": PAD}
    return {name: int(tokenizer.convert_tokens_to_ids(token)) for name, token in names.items()}

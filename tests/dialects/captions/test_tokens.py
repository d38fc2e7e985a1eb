"""Token by token: a caption's words reach each family's model as its authors tokenise them.

Prompts are prepared as for a request, from tiny checkpoints with the architectures' real processors; the tokenizers
are tiny as well, a token a byte, and the special tokens are the real ones by name.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from serve_app.config.applications import ModelConfig
from serve_app.demo import CHECKPOINT
from serve_app.engines.transformers.checkpoint import Checkpoint, answer_decoder, load_checkpoint
from serve_app.engines.transformers.prompt import prepare
from serve_app.families import FAMILIES
from serve_app.families.wish import Wish, worded
from serve_app.messages import Chunk, GenerationRequest, Message, RgbImage, Sampling, Text
from tests import tiny_models
from tests.matrix import captioners, chatters, patchers
from tests.matrix.parts import decoder, save, square, tower
from tests.tiny_engine import chunks_of, started
from tests.tiny_models import spell_as_hub, tokenizer

pytestmark = pytest.mark.engine

BOS, EOS = "<s>", "</s>"
IMAGE = "<|reserved_special_token_69|>"
NUM_PATCHES = 16  # of a tower of 32 pixels with patches of 8

# Of the form of JoyCaption's own: strings for contents, Llama 3.1's headers, the image in the first user's turn
# wherever the message says it, and no beginning of text, which the tokenizer adds.
JOYCAPTION_TEMPLATE = (
    "{%- set mark = '<|reserved_special_token_69|>' %}{%- set seen = namespace(user=false) %}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{%- if m['role'] == 'user' and not seen.user %}{%- set seen.user = true %}"
    "{{- '<|reserved_special_token_70|>' + mark + '<|reserved_special_token_71|>' }}"
    "{{- m['content'].replace(mark, '').lstrip() }}{%- else %}{{- m['content'] }}{%- endif %}{{- '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
HEADERS = {
    "start": "<|start_header_id|>", "end": "<|end_header_id|>", "eot": "<|eot_id|>",
    "image_start": "<|reserved_special_token_70|>", "image_end": "<|reserved_special_token_71|>",
    "image_token": IMAGE,
}  # fmt: skip


def build_joycaption(folder: Path) -> Path:
    """As on the hub: SigLIP's patches, all used, before a Llama 3.1 that begins its texts with one token."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokens = _beginning_texts(tokenizer(chat_template=None, named=HEADERS))
    config = LlavaConfig(
        text_config=decoder("llama", len(tokens)), vision_config=tower("siglip_vision_model"),
        image_token_index=tokens.convert_tokens_to_ids(IMAGE), vision_feature_layer=-2,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    processor = LlavaProcessor(
        SiglipImageProcessorPil(size=square(32)), tokens, patch_size=8, vision_feature_select_strategy="full",
        chat_template=JOYCAPTION_TEMPLATE, image_token=IMAGE,
    )  # fmt: skip
    save(folder, LlavaForConditionalGeneration(config), processor)
    spell_as_hub(folder)
    return folder


def _beginning_texts(tokens: Any) -> Any:
    """The tokenizer puts `<s>` before every text, as Llama's and OPT's do."""
    from tokenizers.processors import TemplateProcessing

    tokens.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokens.convert_tokens_to_ids(BOS))]
    )
    return tokens


def loaded(folder: Path) -> Checkpoint:
    return load_checkpoint(ModelConfig(source=str(folder), engine="transformers", dtype="float32"))


def caption_request(family: str, wish: Wish, shade: int = 64) -> GenerationRequest:
    """As the dialect makes it."""
    words = worded(FAMILIES[family], wish)
    user = Message("user", (RgbImage(40, 24, bytes((shade, 128, 192)) * 40 * 24), Text(words.prompt)))
    messages = (user,) if words.system is None else (Message("system", (Text(words.system),)), user)
    return GenerationRequest(str(shade), "tiny", messages, Sampling(max_tokens=6, temperature=0.0), 60.0)


def prompt_tokens(checkpoint: Checkpoint, wish: Wish) -> list[str]:
    """The prompt's tokens, as the model sees them; a run of image tokens is said once."""
    request = caption_request(checkpoint.family, wish)
    ids = prepare(checkpoint, request).tensors["input_ids"][0].tolist()
    tokens: list[str] = checkpoint.tokenizer.convert_ids_to_tokens(ids)
    return tokens


def spelled(checkpoint: Checkpoint, text: str) -> list[str]:
    """Plain text as tokens."""
    tokens: list[str] = checkpoint.tokenizer.tokenize(text)
    return tokens


def test_joycaption(tmp_path: Path) -> None:
    checkpoint = loaded(build_joycaption(tmp_path))
    assert checkpoint.family == "joycaption"
    tokens = prompt_tokens(checkpoint, Wish(style="Descriptive", length="long"))
    assert tokens == [
        BOS,
        *[HEADERS["start"], *spelled(checkpoint, "system"), HEADERS["end"], *spelled(checkpoint, "\n\n")],
        *[*spelled(checkpoint, "You are a helpful image captioner."), HEADERS["eot"]],
        *[HEADERS["start"], *spelled(checkpoint, "user"), HEADERS["end"], *spelled(checkpoint, "\n\n")],
        *[HEADERS["image_start"], *[IMAGE] * NUM_PATCHES, HEADERS["image_end"]],
        *[*spelled(checkpoint, "Write a long detailed description for this image."), HEADERS["eot"]],
        *[HEADERS["start"], *spelled(checkpoint, "assistant"), HEADERS["end"], *spelled(checkpoint, "\n\n")],
    ]


async def test_joycaption_answers_by_such_a_template_in_a_batch_as_alone(tmp_path: Path) -> None:
    requests = [caption_request("joycaption", Wish(style="midjourney"), shade) for shade in (40, 200)]
    async with started(build_joycaption(tmp_path), dtype="float32") as engine:
        alone = [text_of(await chunks_of(engine, one)) for one in requests]
        together = await asyncio.gather(*(chunks_of(engine, one) for one in requests))
    assert [text_of(chunks) for chunks in together] == alone


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def test_joycaption_begins_once_where_its_template_begins_as_well(tmp_path: Path) -> None:
    folder = build_joycaption(tmp_path)
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template = BOS + JOYCAPTION_TEMPLATE
    processor.save_pretrained(folder)
    tokens = prompt_tokens(loaded(folder), Wish())
    assert (tokens[0], tokens.count(BOS), tokens.count(IMAGE)) == (BOS, 1, NUM_PATCHES)


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        (Wish(), "What does the image describe?"),
        (Wish(style="more detailed"), "Describe with a paragraph what is shown in the image."),
        (Wish(task="<OD>"), "Locate the objects with category name in the image."),
        (Wish(task="caption_to_phrase_grounding", prompt="a car"), "Locate the phrases in the caption: a car"),
    ],
)
def test_florence2(tmp_path: Path, wish: Wish, sentence: str) -> None:
    checkpoint = loaded(captioners.build_florence2(tmp_path))
    tokens = prompt_tokens(checkpoint, wish)
    assert tokens == ["<image>"] * 17 + [BOS, *spelled(checkpoint, sentence), EOS]


@pytest.mark.parametrize("task", FAMILIES["florence2"].tasks, ids=lambda task: task.name)
def test_florence2_is_sent_the_sentence_of_every_task(tmp_path: Path, task: Any) -> None:
    checkpoint = loaded(captioners.build_florence2(tmp_path))
    own = {"nothing": None, "text": "a car", "region": "<loc_52><loc_332><loc_932><loc_774>"}[task.needs]
    tokens = prompt_tokens(checkpoint, Wish(task=task.token, prompt=own))
    sentence = task.prompt.replace("{input}", own or "")
    assert tokens[17:] == [BOS, *spelled(checkpoint, sentence), EOS]


def test_florence2s_answers_keep_their_places(tmp_path: Path) -> None:
    folder = captioners.build_florence2(tmp_path)
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": [f"<loc_{n}>" for n in range(1000)]})
    answer = processor.tokenizer("</s><s>car<loc_5><loc_6><loc_7><loc_8></s><pad>")["input_ids"]
    decode = answer_decoder(processor.tokenizer, loaded(folder).architecture)
    assert decode(answer) == "car<loc_5><loc_6><loc_7><loc_8>"


@pytest.mark.parametrize("style", ["short", "detailed", "grounded"])
def test_kosmos2(tmp_path: Path, style: str) -> None:
    checkpoint = loaded(captioners.build_kosmos2(tmp_path))
    prompt = worded(FAMILIES["kosmos2"], Wish(style=style)).prompt
    tokens = prompt_tokens(checkpoint, Wish(style=style))
    assert (tokens[0], tokens.count(BOS)) == (BOS, 1)
    after = tokens[tokens.index("</image>") + 1 :]
    assert checkpoint.tokenizer.convert_tokens_to_string(after).strip() == prompt
    assert ("<grounding>" in after) == (style == "grounded")


@pytest.mark.parametrize(
    ("wish", "prompt"), [(Wish(), "caption en\n"), (Wish(style="detailed", language="de"), "describe de\n")]
)
def test_paligemma(tmp_path: Path, wish: Wish, prompt: str) -> None:
    checkpoint = loaded(chatters.build_paligemma(tmp_path))
    tokens = prompt_tokens(checkpoint, wish)
    num_images = tokens.count("<image>")
    assert num_images == NUM_PATCHES
    assert tokens[num_images:] == [BOS, *spelled(checkpoint, prompt)]


@pytest.mark.parametrize(
    ("wish", "prompt"),
    [
        (Wish(), "a photo of"),
        (Wish(style="detailed"), "Question: What is shown in the photo in detail? Answer:"),
        (Wish(style="unconditional"), ""),
    ],
)
def test_blip2(tmp_path: Path, wish: Wish, prompt: str) -> None:
    checkpoint = loaded(captioners.build_blip2_opt(tmp_path))
    tokens = prompt_tokens(checkpoint, wish)
    words = [token for token in tokens if token != "<image>"]
    assert "".join(words).removeprefix(BOS) == "".join(spelled(checkpoint, prompt))
    assert tokens.count(BOS) <= 1


@pytest.mark.parametrize(
    ("build", "family"),
    [
        (tiny_models.build_llava, "llava"),
        (chatters.build_llava_next, "llava"),
        (patchers.build_qwen2_5_vl, "qwen-vl"),
        (patchers.build_internvl, "internvl"),
    ],
)
def test_chat_models(tmp_path: Path, build: Callable[[Path], Path], family: str) -> None:
    """The image first, then the words, in the one user's turn of their chat template; nothing before or after."""
    checkpoint = loaded(build(tmp_path))
    assert checkpoint.family == family
    tokens = prompt_tokens(checkpoint, Wish(style="detailed", language="de"))
    special = set(checkpoint.tokenizer.all_special_tokens)
    said = checkpoint.tokenizer.convert_tokens_to_string([token for token in tokens if token not in special])
    plain = "user: Describe this picture in detail. Answer in German.\nassistant: "
    assert "".join(said.split()) == "".join(plain.split())
    assert tokens.count(str(checkpoint.processor.image_token)) >= 1
    assert tokens.count(BOS) <= 1


@pytest.mark.parametrize("build", [captioners.build_instructblip_t5, captioners.build_instructblip_vicuna])
def test_instructblip(tmp_path: Path, build: Callable[[Path], Path]) -> None:
    checkpoint = loaded(build(tmp_path))
    tokens = prompt_tokens(checkpoint, Wish(style="detailed"))
    num_images = tokens.count("<image>")
    assert num_images == checkpoint.processor.num_query_tokens
    assert tokens[num_images:] == spelled(checkpoint, "Write a detailed description for the image.")


@pytest.mark.parametrize(
    ("build", "begins"), [(captioners.build_blip, ["[CLS]", "[SEP]"]), (captioners.build_git, ["[CLS]"])]
)
def test_blip_and_git_begin_without_a_word(tmp_path: Path, build: Callable[[Path], Path], begins: list[str]) -> None:
    """BLIP's own `generate` takes its separator away."""
    assert prompt_tokens(loaded(build(tmp_path)), Wish()) == begins


def runs(tokens: list[str]) -> list[str]:
    """Tokens, a run of one and the same said once."""
    return [token for token, before in zip(tokens, [None, *tokens], strict=False) if token != before]


def test_the_demo_model_as_any_chat_model() -> None:
    """Its tokenizer is real, so these are the very pieces, from the first to the last."""
    checkpoint = loaded(CHECKPOINT)
    assert checkpoint.family == "generic"
    assert runs(prompt_tokens(checkpoint, Wish(style="detailed"))) == [
        "<|im_start|>", "User", ":", "Ċ",
        "<fake_token_around_image>", "<global-img>", "<image>", "<fake_token_around_image>",
        "Describe", "Ġthis", "Ġpicture", "Ġin", "Ġdetail", ".", "<end_of_utterance>", "Ċ", "Assistant", ":", "Ċ",
    ]  # fmt: skip


def test_minicpm(tmp_path: Path) -> None:
    """Its processor numbers the image; the question is its card's, and nothing begins or ends the prompt twice."""
    checkpoint = loaded(patchers.build_minicpmv4_6(tmp_path))
    assert checkpoint.family == "minicpm"
    tokens = runs(prompt_tokens(checkpoint, Wish(style="detailed", language="de")))
    asked = "Please describe the image in detail. Answer in German."
    image = ["<image_id>", "0", "</image_id>", "<image>", "<|image_pad|>", "</image>"]
    turn = [*runs(spelled(checkpoint, "user: ")), *image, *runs(spelled(checkpoint, asked + "assistant: "))]
    assert tokens == turn

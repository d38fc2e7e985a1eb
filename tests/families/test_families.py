"""Families: every style has its prompt, the authors' words are theirs, and what a family lacks is refused by name."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from demo_model.phrases import STYLE_PROMPTS
from serve_app.config.applications import Family
from serve_app.errors import InvalidRequest
from serve_app.families import FAMILIES, STYLES, CaptionFamily, caption_prompt, family_of
from serve_app.families.family import LENGTHS
from serve_app.families.joycaption import ALPHA_TWO, ALPHA_TWO_TYPES, BETA_ONE, BETA_ONE_TYPES
from serve_app.families.wish import Wish, worded

# Prompts of the three styles as they have always been sent.
SENT: dict[str, dict[str, str]] = {
    "generic": STYLE_PROMPTS,
    "joycaption": {
        "short": "Write a short descriptive caption for this image in a formal tone.",
        "detailed": "Write a long descriptive caption for this image in a formal tone.",
        "tags": "Write a list of Booru tags for this image.",
    },
    "blip": {"short": ""},
    "git": {"short": ""},
    "blip2": {"short": "a photo of", "detailed": "Question: What is shown in the photo in detail? Answer:"},
    "instructblip": {
        "short": "Write a short description for the image.",
        "detailed": "Write a detailed description for the image.",
    },
    "florence2": {"short": "<CAPTION>", "detailed": "<DETAILED_CAPTION>"},
    "kosmos2": {"short": "An image of", "detailed": "Describe this image in detail:"},
    "paligemma": {"short": "caption en", "detailed": "describe en"},
    "minicpm": {
        "short": "Describe the image in one sentence.",
        "detailed": "Please describe the image in detail.",
        "tags": "List tags for the image, separated by commas.",
    },
    "qwen-vl": STYLE_PROMPTS,
    "internvl": STYLE_PROMPTS,
    "llava": STYLE_PROMPTS,
}


def prompt(family: str, **wish: object) -> str:
    return worded(FAMILIES[family], replace(Wish(), **wish)).prompt  # type: ignore[arg-type]  # whichever fields


def test_the_demo_model_was_trained_on_the_prompts_that_are_sent() -> None:
    assert {style: caption_prompt("generic", style) for style in STYLES} == STYLE_PROMPTS


@pytest.mark.parametrize("family", SENT)
def test_the_three_styles_keep_their_prompts(family: str) -> None:
    assert {style: caption_prompt(family, style) for style in SENT[family]} == SENT[family]
    for style in set(STYLES) - set(SENT[family]):
        with pytest.raises(InvalidRequest, match=f"style '{style}' is unknown for models of the family '{family}'"):
            caption_prompt(family, style)


def test_the_families_are_those_that_a_config_may_name() -> None:
    assert tuple(sorted(FAMILIES)) == tuple(sorted(get_args(Family)))
    assert all(family.name == name for name, family in FAMILIES.items())


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_every_family_says_itself_in_full(family: CaptionFamily) -> None:
    names = [style.name for style in family.styles]
    assert len(set(names)) == len(names)
    assert "short" in names
    for style in family.styles:
        assert (style.in_words is None) == (style.at_length is None)
        if style.in_words is not None and style.at_length is not None:
            assert style.in_words.count("{word_count}") == 1
            assert style.at_length.count("{length}") == 1


def test_an_unknown_style_is_named_with_the_nearest() -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'detailed'"):
        caption_prompt("generic", "detail")


def test_joycaption_has_the_types_and_options_of_both_versions() -> None:
    assert (len(BETA_ONE_TYPES), len(BETA_ONE.options)) == (12, 27)
    assert (len(ALPHA_TWO_TYPES), len(ALPHA_TWO.options)) == (9, 17)
    assert BETA_ONE.system == ALPHA_TWO.system == "You are a helpful image captioner."


@pytest.mark.parametrize(
    ("wish", "sent"),
    [
        ({"style": "Descriptive"}, "Write a detailed description for this image."),
        ({"style": "descriptive", "length": 50}, "Write a detailed description for this image in 50 words or less."),
        ({"style": "descriptive", "length": "Very Long"}, "Write a very long detailed description for this image."),
        ({"style": "descriptive", "length": "any"}, "Write a detailed description for this image."),
        (
            {"style": "Descriptive (Casual)", "length": "medium-length"},
            "Write a medium-length descriptive caption for this image in a casual tone.",
        ),
        (
            {"style": "stable-diffusion prompt", "length": 77},
            "Output a stable diffusion prompt that is indistinguishable from a real stable diffusion prompt. "
            "77 words or less.",
        ),
        (
            {"style": "midjourney", "options": ("include_lighting", "Do NOT use any ambiguous language.")},
            "Write a MidJourney prompt for this image. Include information about lighting. "
            "Do NOT use any ambiguous language.",
        ),
        (
            {"style": "art critic", "name": "Ann {length}"},
            "Analyze this image like an art critic would with information about its composition, style, symbolism, "
            "the use of color, light, any artistic movement it might belong to, etc. If there is a person/character "
            "in the image you must refer to them as Ann {length}.",
        ),
        (
            {"style": "short", "length": 20},
            "Write a descriptive caption for this image in a formal tone within 20 words.",
        ),
        ({"prompt": "What is it?"}, "What is it?"),
        ({"prompt": "What is it?", "language": "en"}, "What is it?"),
    ],
)
def test_joycaption_is_sent_its_own_words(wish: dict[str, object], sent: str) -> None:
    assert prompt("joycaption", **wish) == sent


def test_the_order_of_the_options_is_the_clients_and_each_counts_once() -> None:
    sentences = list(BETA_ONE.options.values())
    wish = {"options": ("exclude_text", "EXCLUDE-TEXT", "include_watermark")}
    assert prompt("joycaption", style="descriptive", **wish).endswith(f"{sentences[11]} {sentences[4]}")


@pytest.mark.parametrize("length", [*LENGTHS, 1, 260])
@pytest.mark.parametrize("family", ["generic", "joycaption", "joycaption-alpha-two", "minicpm"])
def test_every_style_that_takes_lengths_says_them(family: str, length: int | str) -> None:
    for style in FAMILIES[family].styles:
        assert str(length) in prompt(family, style=style.name, length=length)


def test_alpha_two_knows_its_own_types() -> None:
    assert prompt("joycaption-alpha-two", style="training prompt", length="long") == (
        "Write a long stable diffusion prompt for this image."
    )
    with pytest.raises(InvalidRequest, match="straightforward"):
        prompt("joycaption-alpha-two", style="straightforward")


@pytest.mark.parametrize(
    ("family", "language", "sent"),
    [
        ("generic", "de", "Write a short caption for this picture. Answer in German."),
        ("qwen-vl", "Japanese", "Write a short caption for this picture. Answer in Japanese."),
        ("generic", "English", "Write a short caption for this picture."),
        ("generic", "pt-BR", "Write a short caption for this picture. Answer in Portuguese."),
        ("paligemma", "es", "caption es"),
    ],
)
def test_a_language_is_asked_for_as_the_family_is_asked(family: str, language: str, sent: str) -> None:
    assert prompt(family, language=language) == sent


@pytest.mark.parametrize(
    ("task", "own", "sent"),
    [
        ("<OD>", None, "<OD>"),
        ("od", None, "<OD>"),
        ("OCR_with_region", None, "<OCR_WITH_REGION>"),
        ("caption to phrase grounding", "A green car", "<CAPTION_TO_PHRASE_GROUNDING>A green car"),
        ("region_to_ocr", "<loc_1><loc_2><loc_3><loc_4>", "<REGION_TO_OCR><loc_1><loc_2><loc_3><loc_4>"),
    ],
)
def test_florence_is_sent_its_task(task: str, own: str | None, sent: str) -> None:
    words = worded(FAMILIES["florence2"], Wish(task=task, prompt=own))
    assert words.prompt == sent
    assert words.task is not None


def test_a_prompt_that_begins_with_a_task_is_read_as_that_task() -> None:
    words = worded(FAMILIES["florence2"], Wish(prompt="<OPEN_VOCABULARY_DETECTION>a car"))
    assert words.task is not None
    assert (words.prompt, words.task.reading) == ("<OPEN_VOCABULARY_DETECTION>a car", "boxes or polygons")
    assert worded(FAMILIES["florence2"], Wish(prompt="What is it?")).task is None


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_the_models_page_has_every_family_with_its_styles(family: CaptionFamily) -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "models.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{family.name}` |")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == ", ".join(f"`{style.name}`" for style in family.styles)
    assert (cells[2] == "yes") == any(style.takes_lengths for style in family.styles)
    assert (int(cells[3]), int(cells[4])) == (len(family.options), len(family.tasks))
    assert (cells[5] == "any") == family.speaks_languages


@pytest.mark.parametrize(
    ("family", "wish", "param", "says"),
    [
        ("joycaption", {"style": "descriptif"}, "style", "did you mean 'descriptive'"),
        ("joycaption", {"length": "huge"}, "length", "very long"),
        ("joycaption", {"options": ("include_light",)}, "options[0]", "did you mean 'include_lighting'"),
        ("joycaption", {"options": ("include_lighting", "x")}, "options[1]", "'x' is unknown"),
        ("joycaption", {"options": ("refer_character_name",)}, "name", "needs it"),
        ("joycaption", {"language": "de"}, "language", "English only"),
        ("joycaption", {"prompt": "hi", "style": "short"}, "style", "there is a prompt as well"),
        ("joycaption", {"prompt": "hi", "options": ("include_lighting",)}, "options", "there is a prompt"),
        ("joycaption", {"prompt": "hi", "length": 5}, "length", "there is a prompt"),
        ("joycaption", {"prompt": "hi", "name": "Ann"}, "name", "there is a prompt"),
        ("joycaption", {"task": "od"}, "task", "only Florence-2"),
        ("blip", {"length": 5}, "length", "family 'blip' don't"),
        ("generic", {"options": ("include_lighting",)}, "options", "have none"),
        ("generic", {"name": "Ann"}, "name", "can't be told one"),
        ("generic", {"language": "klingon"}, "language", "is unknown"),
        ("qwen-vl", {"style": "describe", "length": 5}, "length", "short, detailed, tags"),
        ("paligemma", {"prompt": "ocr", "language": "de"}, "language", "of your own"),
        ("florence2", {"task": "odd"}, "task", "did you mean 'od'"),
        ("florence2", {"task": "od", "prompt": "car"}, "prompt", "takes none"),
        ("florence2", {"task": "open_vocabulary_detection"}, "prompt", "needs the words"),
        ("florence2", {"task": "region_to_ocr", "prompt": "here"}, "prompt", "<loc_52>"),
        ("florence2", {"task": "od", "style": "short"}, "style", "there is a task"),
        ("florence2", {"task": "od", "language": "en"}, "language", "there is a task"),
    ],
)
def test_what_a_family_cant_do_is_refused_by_name(
    family: str, wish: dict[str, object], param: str, says: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        prompt(family, **wish)
    assert refused.value.param == param
    assert says in refused.value.message


def test_siglip_and_llama_make_a_llava_a_joycaption() -> None:
    assert family_of("llava", "siglip_vision_model", "llama") == "joycaption"
    assert family_of("llava", "clip_vision_model", "llama") == "llava"
    assert family_of("blip-2") == "blip2"
    assert family_of("no_such_thing") == "generic"

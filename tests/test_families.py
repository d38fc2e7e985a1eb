"""Prompts: every style has one, and the demo model was trained on exactly these."""

from typing import get_args

import pytest

from serve_app.config import Family
from serve_app.demo import STYLE_PROMPTS
from serve_app.errors import InvalidRequest
from serve_app.families import STYLES, caption_prompt, family_of


def test_the_demo_model_was_trained_on_the_prompts_that_are_sent() -> None:
    assert {style: caption_prompt("generic", style) for style in STYLES} == STYLE_PROMPTS


def test_an_unknown_style_is_named_with_the_nearest() -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'detailed'"):
        caption_prompt("generic", "detail")


def test_a_style_that_a_family_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(InvalidRequest, match=r"'tags' is unknown for models of the family 'blip'.*short"):
        caption_prompt("blip", "tags")


def test_every_family_has_a_short_caption() -> None:
    assert all(isinstance(caption_prompt(family, "short"), str) for family in get_args(Family))


def test_siglip_and_llama_make_a_llava_a_joycaption() -> None:
    assert family_of("llava", "siglip_vision_model", "llama") == "joycaption"
    assert family_of("llava", "clip_vision_model", "llama") == "generic"
    assert family_of("blip-2") == "blip2"
    assert family_of("no_such_thing") == "generic"

"""Prompts: every style has one, and the demo model was trained on exactly these."""

import pytest

from serve_app.demo import STYLE_PROMPTS
from serve_app.errors import InvalidRequest
from serve_app.families import STYLES, caption_prompt


def test_the_demo_model_was_trained_on_the_prompts_that_are_sent() -> None:
    assert {style: caption_prompt("generic", style) for style in STYLES} == STYLE_PROMPTS


def test_an_unknown_style_is_named_with_the_nearest() -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'detailed'"):
        caption_prompt("generic", "detail")

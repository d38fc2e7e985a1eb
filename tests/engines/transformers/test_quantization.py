"""int8 weights: the demo model still sees, and takes less memory."""

from pathlib import Path

import pytest
from PIL import Image

from serve_app.config.applications import ModelConfig
from serve_app.engines.transformers.checkpoint import load_checkpoint
from serve_app.errors import ConfigError
from serve_app.messages import RgbImage
from tests import drawings as images
from tests.tiny_engine import answer, model_of, num_bytes, request, started, together

pytestmark = pytest.mark.engine


def shown(image: Image.Image) -> RgbImage:
    return RgbImage(image.width, image.height, image.tobytes())


async def test_int8_sees_what_is_there_in_less_memory() -> None:
    cases = [("red", "circle"), ("blue", "square"), ("green", "triangle")]
    asked = [request(shown(images.draw(*case)), "Describe the picture.", max_tokens=40) for case in cases]
    async with started(Path("demo")) as engine:
        full = num_bytes(model_of(engine))
    async with started(Path("demo"), quantization="int8") as engine:
        assert num_bytes(model_of(engine)) < 0.65 * full
        alone = [await answer(engine, one) for one in asked]
        for (color, shape), (text, _, _) in zip(cases, alone, strict=True):
            assert images.says(text, color, shape), text
        assert len(await together(engine, asked)) == 3


def test_other_quantizations_need_the_other_engine() -> None:
    with pytest.raises(ConfigError, match="vllm"):
        load_checkpoint(ModelConfig(source="demo", quantization="awq"))

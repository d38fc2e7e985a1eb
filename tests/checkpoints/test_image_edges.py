"""How much of an image a model keeps: read from its checkpoint, and never less than its processor would look at."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_app.checkpoints.image_edges import image_edge
from serve_app.config.http import ImageConfig
from serve_app.demo import CHECKPOINT
from serve_app.images.gate import ImageBytes, ImageGate
from serve_app.messages import ImageEdge
from tests.drawings import encode, png

CLIP = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 336}}
IDEFICS = {"image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 256}}


@pytest.mark.parametrize(
    ("settings", "edge"),
    [
        (CLIP, ImageEdge("shortest", 336)),
        ({**CLIP, "image_processor_type": "CLIPImageProcessorFast"}, ImageEdge("shortest", 336)),
        ({**CLIP, "size": 224}, ImageEdge("shortest", 224)),
        ({**CLIP, "size": {"height": 384, "width": 512}}, ImageEdge("shortest", 512)),
        ({**CLIP, "do_resize": False}, None),
        ({**CLIP, "size": {"shortest_edge": 224, "longest_edge": 448}}, None),
        ({**IDEFICS, "do_image_splitting": False}, ImageEdge("longest", 256)),
        (IDEFICS, None),  # these split unless they are told not to
        ({**IDEFICS, "do_image_splitting": True}, None),
        ({**CLIP, "image_processor_type": "Gemma3ImageProcessor", "do_pan_and_scan": True}, None),
        ({**CLIP, "image_processor_type": "LlavaNextImageProcessor"}, None),
        ({"image_processor_type": "Qwen2VLImageProcessor", "max_pixels": 1_000_000}, None),
        ({"image_processor_type": "NobodysImageProcessor", "size": 224}, None),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 448}, None),  # OpenGVLab's InternVL, which tiles
        ({}, None),
    ],
)
@pytest.mark.parametrize("is_nested", [True, False])
def test_what_the_processor_keeps(
    tmp_path: Path, settings: dict[str, Any], edge: ImageEdge | None, is_nested: bool
) -> None:
    name = "processor_config.json" if is_nested else "preprocessor_config.json"
    (tmp_path / name).write_text(json.dumps({"image_processor": settings} if is_nested else settings))
    assert image_edge(tmp_path) == edge


def test_a_model_with_code_of_its_own_may_look_at_all(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CLIP))
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "modeling.Model"}}))
    assert image_edge(tmp_path) is None


def test_a_text_model_keeps_nothing_and_the_demo_what_its_card_says(tmp_path: Path) -> None:
    assert image_edge(tmp_path) is None
    assert image_edge(CHECKPOINT) == ImageEdge("longest", 256)


@pytest.mark.parametrize(
    ("size", "edge", "wanted"),
    [
        ((4000, 3000), ImageEdge("longest", 256), (512, 384)),
        ((768, 576), ImageEdge("longest", 256), (768, 576)),  # near enough: a filter would cost more than the bytes
        ((769, 577), ImageEdge("longest", 256), (512, 384)),
        ((2049, 1500), ImageEdge("longest", 1024), (2048, 1499)),  # the longest edge that there is
        ((4000, 3000), ImageEdge("shortest", 224), (597, 448)),
        ((4000, 40), ImageEdge("shortest", 224), (2048, 20)),  # nothing to spare on the shortest edge
        ((400, 300), ImageEdge("longest", 256), (400, 300)),
        ((4000, 3000), None, (2048, 1536)),
    ],
)
async def test_images_arrive_at_two_to_three_times_what_is_kept(
    size: tuple[int, int], edge: ImageEdge | None, wanted: tuple[int, int]
) -> None:
    gate = ImageGate(ImageConfig())
    image = await gate.load(ImageBytes(png("red", "circle", size)), "image", edge)
    await gate.close()
    assert (image.width, image.height) == wanted


async def test_what_a_jpegs_decoder_shrank_enough_stays_as_it_is() -> None:
    gate = ImageGate(ImageConfig())
    sizes = []
    for size in ((1500, 1000), (4000, 3000)):
        data = encode(Image.new("RGB", size, "red"), "JPEG")
        image = await gate.load(ImageBytes(data), "image", ImageEdge("longest", 256))
        sizes.append((image.width, image.height))
    await gate.close()
    assert sizes == [(750, 500), (512, 384)]


async def test_shrinking_ahead_changes_little_of_what_the_model_sees() -> None:
    from demo_model.pictures import processed_pixels

    data = png("red", "star", (3000, 2000))
    gate = ImageGate(ImageConfig())
    seen = []
    for edge in (ImageEdge("longest", 256), None):
        loaded = await gate.load(ImageBytes(data), "image", edge)
        image = Image.frombytes("RGB", (loaded.width, loaded.height), loaded.rgb)
        seen.append(processed_pixels(image).astype(int))
    await gate.close()
    assert np.abs(seen[0] - seen[1]).mean() < 1.0, "of 255"

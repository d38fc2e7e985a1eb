"""The demo model's generator: same seed, same picture; the held-out rule; answers; training's pixels and text."""

import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from demo_model import answers
from demo_model.asking import QUESTIONS, question, random_request
from demo_model.dialogues import about_one_picture, random_dialogue
from demo_model.drawing import random_layout, render
from demo_model.phrases import STYLE_PROMPTS
from demo_model.scenes import BACKGROUNDS, COLORS, KINDS, Scene, Shape, is_held_out, random_scene, random_split_scene
from demo_model.shapeless import SHAPELESS, render_shapeless

SCENE = Scene(
    (
        Shape("circle", "red", "large", 0),
        Shape("square", "orange", "small", 4),
        Shape("star", "red", "small", 5),
    ),
    "light blue",
)


def test_the_service_prompts_are_fixed() -> None:
    assert STYLE_PROMPTS == {
        "short": "Write a short caption for this picture.",
        "detailed": "Describe this picture in detail.",
        "tags": "List tags for this picture, separated by commas.",
    }


def test_captions() -> None:
    assert answers.short(SCENE) == "a red circle, an orange square and a red star"
    assert answers.detailed(SCENE) == (
        "A large red circle in the top left, a small orange square in the center "
        "and a small red star in the middle right on a light blue background."
    )
    assert answers.tags(SCENE) == "red circle, orange square, red star, light blue background"
    assert answers.short(None) == answers.detailed(None) == answers.tags(None) == answers.NO_SHAPES


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (answers.color_of(SCENE, "circle"), "The circle is red."),
        (answers.color_of(SCENE, "heart"), "There is no heart."),
        (answers.kind_of(SCENE, "red"), "The red shapes are a circle and a star."),
        (answers.kind_of(SCENE, "orange"), "The orange shape is a square."),
        (answers.kind_of(SCENE, "blue"), "There is no blue shape."),
        (answers.count_of(SCENE), "There are three shapes."),
        (
            answers.count_of(SCENE, "star"),
            "I see a red circle, an orange square and a red star, so there is one star.",
        ),
        (
            answers.count_of(SCENE, "cross"),
            "I see a red circle, an orange square and a red star, so there is no cross.",
        ),
        (answers.exists(SCENE, "red star"), "Yes, there is a red star."),
        (answers.exists(SCENE, "orange star"), "No, there is no orange star."),
        (answers.is_color(SCENE, "star", "red"), "Yes, the star is red."),
        (answers.is_color(SCENE, "star", "blue"), "No, the star is red."),
        (answers.size_of(SCENE, "circle"), "The circle is large."),
        (answers.place_of(SCENE, "red star"), "The red star is in the middle right."),
        (answers.at_place(SCENE, 4), "There is an orange square in the center."),
        (answers.at_place(SCENE, 8), "There is nothing in the bottom right."),
        (
            answers.beside(SCENE, "star", "left of"),
            "The star is in the middle right. A red circle and an orange square are left of it.",
        ),
        (
            answers.beside(SCENE, "circle", "below"),
            "The circle is in the top left. An orange square and a red star are below it.",
        ),
        (answers.beside(SCENE, "circle", "above"), "The circle is in the top left. Nothing is above it."),
        (answers.background_of(SCENE), "The background is light blue."),
    ],
)
def test_question_answers(answer: str, wanted: str) -> None:
    assert answer == wanted


def test_a_seed_fixes_scene_and_picture() -> None:
    def drawn(seed: int) -> tuple[Scene, bytes]:
        rng = random.Random(seed)
        scene = random_scene(rng)
        return scene, render(scene, rng).tobytes()

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)
    assert render_shapeless(random.Random(5)).tobytes() == render_shapeless(random.Random(5)).tobytes()


def test_scenes_are_as_promised() -> None:
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(2000)]
    assert {shape.kind for scene in scenes for shape in scene.shapes} == set(KINDS)
    assert {shape.color for scene in scenes for shape in scene.shapes} == set(COLORS)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    for scene in scenes:
        assert 1 <= len(scene.shapes) == len(scene.pairs) <= 3
        assert [shape.place for shape in scene.shapes] == sorted({shape.place for shape in scene.shapes})
        assert not BACKGROUNDS[scene.background] & {shape.color for shape in scene.shapes}


def test_the_held_out_rule_looks_at_shapes_and_colors_only() -> None:
    rng = random.Random(1)
    scenes = [random_scene(rng) for _ in range(4000)]
    assert sum(is_held_out(scene) for scene in scenes) / len(scenes) == pytest.approx(1 / 8, abs=0.03)
    moved = Scene(tuple(reversed(SCENE.shapes)), "gray")
    assert is_held_out(moved) is is_held_out(SCENE)
    assert not is_held_out(random_split_scene(rng, held_out=False))
    assert is_held_out(random_split_scene(rng, held_out=True))


def test_shapes_are_where_the_scene_says() -> None:
    rng = random.Random(2)
    for _ in range(300):
        scene = random_scene(rng)
        layout = random_layout(scene, rng)
        for placement in layout.placements:
            column, row = int(placement.x / layout.width * 3), int(placement.y / layout.height * 3)
            assert row * 3 + column == placement.shape.place


@pytest.mark.parametrize("kind", SHAPELESS)
def test_pictures_without_shapes_can_be_drawn(kind: str) -> None:
    assert render_shapeless(random.Random(kind), kind).mode == "RGB"


@pytest.mark.parametrize("kind", QUESTIONS)
def test_questions_can_be_asked_of_any_scene(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(200):
        asked = question(kind, random_scene(rng), rng)
        assert asked.prompt
        assert "{" not in asked.prompt + asked.answer
    assert question(kind, None, rng).answer == answers.NO_SHAPES


def test_no_request_has_an_open_blank() -> None:
    rng = random.Random(7)
    for _ in range(500):
        request = random_request(random_scene(rng), rng)
        assert request.answer
        assert "{kind}" not in request.prompt


def test_training_sees_the_pixels_that_the_processor_makes() -> None:
    import torch

    from demo_model.architecture import image_processor
    from demo_model.learning import normalized
    from demo_model.pictures import processed_pixels

    rng = random.Random(8)
    for picture in (render(random_scene(rng), rng), Image.new("RGB", (1, 1), "red"), Image.new("RGB", (900, 300))):
        wanted = image_processor()(picture, return_tensors="pt")["pixel_values"][0, 0]
        pixels = torch.from_numpy(np.stack([processed_pixels(picture)]))
        assert torch.allclose(normalized(pixels)[0], wanted, atol=1e-6)


def test_training_sees_the_text_that_the_template_makes() -> None:
    from transformers import AutoProcessor

    from demo_model.generation import _as_openai
    from demo_model.wording import EXPANDED_IMAGE, IMAGE, pieces
    from serve_app.demo import CHECKPOINT

    processor = AutoProcessor.from_pretrained(CHECKPOINT)
    rng = random.Random(9)
    for index in range(100):
        numbers = itertools.count()

        def next_picture(numbers: Iterator[int] = numbers) -> tuple[int, Scene]:
            return next(numbers), random_scene(rng)

        dialogue = about_one_picture(*next_picture(), rng) if index % 2 else random_dialogue(next_picture, rng)
        trained = list(pieces(dialogue))
        written = processor.apply_chat_template(_as_openai(dialogue.messages), tokenize=False)
        assert "".join(text for text, _ in trained) + "\n" == written.replace(IMAGE, EXPANDED_IMAGE)
        apart = [token for text, _ in trained for token in processor.tokenizer(text)["input_ids"]]
        together = processor.tokenizer("".join(text for text, _ in trained))["input_ids"]
        assert apart == together

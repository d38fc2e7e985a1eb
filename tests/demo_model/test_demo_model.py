"""The shipped checkpoint as users have it: size, hand-drawn pictures, batches, ends, and the card's figures."""

import io
import json
import random
from collections.abc import Callable

import pytest
from PIL import Image, ImageDraw

from demo_model import answers
from demo_model.dialogues import Message
from demo_model.evaluate import GOALS
from demo_model.generation import Conversation, LoadedModel, about
from demo_model.model_card import card_of
from demo_model.phrases import STYLE_PROMPTS
from serve_app.demo import CHECKPOINT

pytestmark = pytest.mark.engine

Draw = Callable[[ImageDraw.ImageDraw], None]
_MAX_BYTES = 10_000_000


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return LoadedModel(CHECKPOINT)


def _drawn(size: tuple[int, int], background: str, draw: Draw, mode: str = "RGB") -> Image.Image:
    picture = Image.new("RGB", size, background)
    draw(ImageDraw.Draw(picture))
    return picture.convert(mode)


def _jpeg(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=75)
    return Image.open(buffer)


def _circle_and_square(draw: ImageDraw.ImageDraw) -> None:
    draw.ellipse((40, 180, 160, 300), fill="red")
    draw.rectangle((480, 190, 600, 310), fill="blue")


def _triangle(draw: ImageDraw.ImageDraw) -> None:
    draw.polygon([(128, 80), (80, 170), (176, 170)], fill=(0, 128, 0))


HAND_DRAWN = {
    "center": (
        _drawn((224, 224), "white", lambda d: d.ellipse((72, 72, 152, 152), fill=(255, 0, 0))),
        "a red circle",
    ),
    "half the canvas": (
        _drawn((224, 224), "white", lambda d: d.ellipse((56, 56, 168, 168), fill=(255, 0, 0))),
        "a red circle",
    ),
    "corner": (
        _drawn((224, 224), "white", lambda d: d.rectangle((10, 10, 70, 70), fill="blue")),
        "a blue square",
    ),
    "corner of a black one": (
        _drawn((300, 300), "black", lambda d: d.rectangle((210, 210, 285, 285), fill="yellow")),
        "a yellow square",
    ),
    "two": (_drawn((640, 480), "white", _circle_and_square), "a red circle and a blue square"),
    "jpeg": (_jpeg(_drawn((640, 480), "white", _circle_and_square)), "a red circle and a blue square"),
    "green": (_drawn((256, 256), "white", _triangle), "a green triangle"),
    "rgba": (_drawn((256, 256), "white", _triangle, "RGBA"), "a green triangle"),
    "palette": (_drawn((256, 256), "white", _triangle, "P"), "a green triangle"),
    "wide": (_drawn((600, 200), "white", lambda d: d.ellipse((270, 70, 330, 130), fill="black")), "a black circle"),
    "ring": (
        _drawn((256, 256), "white", lambda d: d.ellipse((90, 90, 166, 166), outline="purple", width=12)),
        "a purple ring",
    ),
    "diamond on gray": (
        _drawn(
            (256, 256), "gray", lambda d: d.polygon([(128, 85), (171, 128), (128, 171), (85, 128)], fill="orange")
        ),
        "an orange diamond",
    ),
}


def test_the_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= _MAX_BYTES


@pytest.mark.parametrize("name", HAND_DRAWN)
def test_hand_drawn_pictures(model: LoadedModel, name: str) -> None:
    picture, caption = HAND_DRAWN[name]
    (answer,) = model.answers([about(picture, STYLE_PROMPTS["short"])])
    assert answer.text == caption
    assert answer.has_ended


def test_styles_and_questions(model: LoadedModel) -> None:
    picture = HAND_DRAWN["two"][0]
    wanted = {
        STYLE_PROMPTS[
            "detailed"
        ]: "A large red circle in the middle left and a large blue square in the middle right on a white background.",
        STYLE_PROMPTS["tags"]: "red circle, blue square, white background",
        "What color is the circle?": "The circle is red.",
        "How many shapes are there?": "There are two shapes.",
        "Is there a star?": "No, there is no star.",
        "What is left of the square?": "The square is in the middle right. A red circle is left of it.",
    }
    found = model.answers([about(picture, prompt) for prompt in wanted])
    assert [answer.text for answer in found] == list(wanted.values())


def test_a_batch_says_what_each_alone_says(model: LoadedModel) -> None:
    conversations = [about(picture, STYLE_PROMPTS["detailed"]) for picture, _ in HAND_DRAWN.values()]
    alone = [model.answers([conversation])[0] for conversation in conversations]
    assert model.answers(conversations) == alone


def test_several_pictures(model: LoadedModel) -> None:
    pictures = (HAND_DRAWN["corner"][0], HAND_DRAWN["green"][0])
    asked = [
        Conversation((Message("user", (0, 1, f"What is in the {which} picture?")),), pictures)
        for which in ("first", "second")
    ]
    assert [answer.text for answer in model.answers(asked)] == ["a blue square", "a green triangle"]


def test_text_without_a_picture(model: LoadedModel) -> None:
    wanted = {
        "Hello!": answers.GREETING,
        "Who are you?": answers.IDENTITY,
        "What can you do?": answers.ABILITY,
        "Thank you!": answers.THANKS,
        "What is the capital of France?": answers.UNABLE,
        "What is in the picture?": answers.NO_PICTURE,
    }
    found = model.answers([Conversation((Message("user", (text,)),)) for text in wanted])
    assert [answer.text for answer in found] == list(wanted.values())


def test_every_answer_ends(model: LoadedModel) -> None:
    rng = random.Random(0)
    texts = ["".join(chr(rng.randint(33, 0x2FFF)) for _ in range(rng.randint(1, 60))) for _ in range(16)]
    static = Image.frombytes("RGB", (64, 64), rng.randbytes(64 * 64 * 3))
    asked = [about(static, text) for text in texts] + [Conversation((Message("user", (text,)),)) for text in texts]
    assert all(answer.has_ended for answer in model.answers(asked))


def test_the_goals_are_reached() -> None:
    figures = json.loads((CHECKPOINT / "evaluation.json").read_text(encoding="utf-8"))
    assert figures["goals"] == GOALS
    assert not {name for name, goal in GOALS.items() if figures["reached"][name] < goal}
    assert figures["num_scenes"] >= 1000
    assert figures["num_endless"] == 0


def test_the_model_card_states_the_evaluation() -> None:
    assert (CHECKPOINT / "README.md").read_text(encoding="utf-8") == card_of(CHECKPOINT)

"""Whole conversations: turns about one picture, several pictures, later pictures, and text alone.

A message has the shape of an OpenAI message with parts; a picture is named by its index in the list of scenes
that the caller keeps. Knows no pixels and no tokens.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from demo_model import answers, phrases
from demo_model.asking import random_request
from demo_model.scenes import Scene

ORDINALS = ("first", "second", "third")
_CAPTION_FORMS = ("What is in {}?", "What's in {}?", "Caption {}.", "What do you see in {}?", "What does {} show?")
NextPicture = Callable[[], tuple[int, Scene | None]]


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `parts` holds picture indices and texts in their order."""

    role: str
    parts: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class Dialogue:
    messages: tuple[Message, ...]

    @property
    def pictures(self) -> list[int]:
        return [part for message in self.messages for part in message.parts if isinstance(part, int)]


_TEXT_TOPICS: dict[str, tuple[Sequence[str], str]] = {
    "greeting": (phrases.GREETING, answers.GREETING),
    "identity": (phrases.IDENTITY, answers.IDENTITY),
    "ability": (phrases.ABILITY, answers.ABILITY),
    "thanks": (phrases.THANKS, answers.THANKS),
    "farewell": (phrases.FAREWELL, answers.FAREWELL),
    "no picture": (phrases.PICTURE_MISSING, answers.NO_PICTURE),
    "anything": (phrases.OFF_TOPIC, answers.UNABLE),
}
TEXT_TOPICS = tuple(_TEXT_TOPICS)
_TOPIC_WEIGHTS = (3, 3, 3, 2, 1, 2, 7)


def text_turn(rng: random.Random, topic: str | None = None, *, has_picture: bool = False) -> tuple[str, str]:
    """A request without a picture, and its answer."""
    topic = topic or rng.choices(TEXT_TOPICS, _TOPIC_WEIGHTS)[0]
    if has_picture and topic in ("no picture", "anything"):
        topic = "thanks"
    texts, answer = _TEXT_TOPICS[topic]
    text = rng.choice(texts)
    if topic == "anything":
        if rng.random() < 0.25:
            return phrases.random_characters(rng), answer
        text = " ".join(phrases.off_topic(rng.choice(texts), rng) for _ in range(rng.choice((1, 1, 1, 1, 2, 5))))
    return phrases.roughened(text, rng), answer


def _turn(user: Sequence[int | str], answer: str) -> list[Message]:
    return [Message("user", tuple(user)), Message("assistant", (answer,))]


def _with_system(messages: list[Message], rng: random.Random, share: float = 0.25) -> Dialogue:
    if rng.random() < share:
        messages = [Message("system", (rng.choice(phrases.SYSTEM),)), *messages]
    return Dialogue(tuple(messages))


def about_one_picture(picture: int, scene: Scene | None, rng: random.Random) -> Dialogue:
    """The picture first, then its question; sometimes more turns."""
    request = random_request(scene, rng)
    messages = _turn((picture, request.prompt), request.answer)
    while rng.random() < 0.2:
        if rng.random() < 0.1:
            messages += _turn(*_as_parts(text_turn(rng, has_picture=True)))
        else:
            request = random_request(scene, rng)
            if request.prompt:
                messages += _turn((request.prompt,), request.answer)
    return Dialogue(tuple(messages))


def _as_parts(turn: tuple[str, str]) -> tuple[tuple[str], str]:
    return (turn[0],), turn[1]


def _picture_after_text(next_picture: NextPicture, rng: random.Random) -> Dialogue:
    picture, scene = next_picture()
    request = random_request(scene, rng)
    return _with_system(_turn((request.prompt, picture), request.answer), rng)


def _picture_with_system(next_picture: NextPicture, rng: random.Random) -> Dialogue:
    return _with_system(list(about_one_picture(*next_picture(), rng).messages), rng, share=1.0)


def _several_pictures(next_picture: NextPicture, rng: random.Random) -> Dialogue:
    """Two or three pictures in one turn; a plain request is about the last one."""
    shown = [next_picture() for _ in range(rng.choice((2, 2, 3)))]
    messages: list[Message] = []
    for turn in range(rng.choice((1, 1, 2))):
        index = rng.randrange(len(shown))
        text, answer = _request_about(index, shown[index][1], rng)
        if rng.random() < 0.15:
            request = random_request(shown[-1][1], rng)
            text, answer = request.prompt, request.answer
        parts: list[int | str] = [text or "What is in this picture?"]
        if turn == 0:
            pictures = [picture for picture, _ in shown]
            parts = [*pictures, *parts] if rng.random() < 0.75 else [*parts, *pictures]
        messages += _turn(parts, answer)
    return _with_system(messages, rng, share=0.15)


def _request_about(index: int, scene: Scene | None, rng: random.Random) -> tuple[str, str]:
    """A request that names the picture by its number."""
    name = f"the {ORDINALS[index]} {rng.choice(('picture', 'picture', 'image'))}"
    if rng.random() < 0.5:
        form = rng.choice(_CAPTION_FORMS)
        return phrases.roughened(form.format(name), rng), answers.short(scene)
    if rng.random() < 0.3:
        form = rng.choice(("Describe {}.", "Describe {} in detail.", "Give a detailed description of {}."))
        return phrases.roughened(form.format(name), rng), answers.detailed(scene)
    request = random_request(scene, rng)
    form = rng.choice(("In {0}: {1}", "{1} I mean {0}.", "About {0}: {1}"))
    return form.format(name, request.prompt or "What is in it?"), request.answer


def _later_picture(next_picture: NextPicture, rng: random.Random) -> Dialogue:
    """A picture in each of two turns; the second request is about the second picture, unless it names one."""
    messages: list[Message] = []
    shown = []
    for _ in range(2):
        picture, scene = next_picture()
        shown.append(scene)
        request = random_request(scene, rng)
        messages += _turn((picture, request.prompt), request.answer)
    if rng.random() < 0.3:
        index = rng.randrange(2)
        text, answer = _request_about(index, shown[index], rng)
        messages += _turn((text,), answer)
    return _with_system(messages, rng, share=0.15)


def _text_only(next_picture: NextPicture, rng: random.Random) -> Dialogue:
    del next_picture
    messages: list[Message] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        messages += _turn(*_as_parts(text_turn(rng)))
    return _with_system(messages, rng)


def _text_then_picture(next_picture: NextPicture, rng: random.Random) -> Dialogue:
    messages = _turn(*_as_parts(text_turn(rng)))
    messages += about_one_picture(*next_picture(), rng).messages
    return _with_system(messages, rng)


def long_dialogue(next_picture: NextPicture, rng: random.Random) -> Dialogue:
    """A long text, with or without a picture, or a long chat."""
    choice = rng.random()
    if choice < 0.6:
        if rng.random() < 0.5:
            text = "".join(phrases.random_characters(rng) for _ in range(rng.randint(1, 14)))
        elif rng.random() < 0.5:
            text = "".join(chr(rng.randint(33, 0x9FFF)) for _ in range(rng.randint(1, 180)))
        else:
            text = " ".join(phrases.off_topic(rng.choice(phrases.OFF_TOPIC), rng) for _ in range(rng.randint(2, 40)))
        if rng.random() < 0.7:
            return Dialogue(tuple(_turn((text,), answers.UNABLE)))
        picture, scene = next_picture()
        answer = answers.NO_SHAPES if scene is None else answers.UNABLE
        return Dialogue(tuple(_turn((picture, text), answer)))
    messages: list[Message] = []
    for _ in range(rng.randint(3, 6)):
        messages += random_dialogue(next_picture, rng).messages
    return Dialogue(tuple(message for message in messages if message.role != "system"))


_FORMS = (
    _picture_after_text, _picture_with_system, _several_pictures, _later_picture, _text_only, _text_then_picture
)  # fmt: skip
_FORM_WEIGHTS = (3, 2, 6, 3, 5, 1)


def random_dialogue(next_picture: NextPicture, rng: random.Random) -> Dialogue:
    """Any conversation other than one picture followed by its question."""
    return rng.choices(_FORMS, _FORM_WEIGHTS)[0](next_picture, rng)

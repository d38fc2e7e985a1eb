"""Random requests about one scene, with their answers: the three caption styles and every kind of question.

Only unambiguous questions are asked ("the circle" only where there is one). Questions about what isn't there,
and about pictures without shapes, are part of it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from demo_model import answers, phrases
from demo_model.scenes import COLORS, KINDS, PLACES, Scene, random_scene


@dataclass(frozen=True, slots=True)
class Request:
    kind: str
    prompt: str
    answer: str


def _plural(kind: str) -> str:
    return f"{kind}es" if kind == "cross" else f"{kind}s"


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _single_kinds(scene: Scene) -> list[str]:
    """The kinds that stand in the scene exactly once."""
    return [shape.kind for shape in scene.shapes if len(answers.of_kind(scene, shape.kind)) == 1]


def _absent_kind(scene: Scene, rng: random.Random) -> str:
    return rng.choice([kind for kind in KINDS if not answers.of_kind(scene, kind)])


def _absent_name(scene: Scene, rng: random.Random) -> str:
    """A kind or a color and kind that isn't there; often one that shares a word with what is."""
    choice = rng.random()
    if choice < 0.35:
        return _absent_kind(scene, rng)
    shape = rng.choice(scene.shapes)
    while True:
        color = shape.color if choice < 0.6 else rng.choice(COLORS)
        kind = shape.kind if 0.6 <= choice < 0.85 else rng.choice(KINDS)
        if (kind, color) not in scene.pairs:
            return f"{color} {kind}"


def _present_name(scene: Scene, rng: random.Random) -> str:
    """An unambiguous name of a shape in the scene."""
    shape = rng.choice(scene.shapes)
    if len(answers.of_kind(scene, shape.kind)) == 1 and rng.random() < 0.65:
        return shape.kind
    return f"{shape.color} {shape.kind}"


def _name(scene: Scene, rng: random.Random, absent: float) -> str:
    return _absent_name(scene, rng) if rng.random() < absent else _present_name(scene, rng)


Asked = tuple[str, str]  # prompt, answer


def _color(scene: Scene, rng: random.Random) -> Asked:
    present = _single_kinds(scene)
    kind = rng.choice(present) if present and rng.random() > 0.12 else _absent_kind(scene, rng)
    return rng.choice(phrases.COLOR).format(kind=kind), answers.color_of(scene, kind)


def _kind(scene: Scene, rng: random.Random) -> Asked:
    color = rng.choice(scene.shapes).color if rng.random() > 0.15 else rng.choice(COLORS)
    return rng.choice(phrases.KIND).format(color=color), answers.kind_of(scene, color)


def _count(scene: Scene, rng: random.Random) -> Asked:
    return rng.choice(phrases.COUNT), answers.count_of(scene)


def _count_kind(scene: Scene, rng: random.Random) -> Asked:
    kinds = [shape.kind for shape in scene.shapes]
    twice = [kind for kind in kinds if kinds.count(kind) > 1]
    # None, one and several about equally often: otherwise "one" is learned as the answer to all.
    kind = _absent_kind(scene, rng) if rng.random() < 0.4 else rng.choice(twice or kinds)
    return rng.choice(phrases.COUNT_KIND).format(kinds=_plural(kind)), answers.count_of(scene, kind)


def _exists(scene: Scene, rng: random.Random) -> Asked:
    shape = rng.choice(scene.shapes)
    name = rng.choice((shape.kind, f"{shape.color} {shape.kind}"))
    if rng.random() < 0.5:
        name = _absent_name(scene, rng)
    names = " ".join([*name.split(" ")[:-1], _plural(name.split(" ")[-1])])
    return rng.choice(phrases.EXISTS).format(a_name=_a(name), name=name, names=names), answers.exists(scene, name)


def _is_color(scene: Scene, rng: random.Random) -> Asked:
    present = _single_kinds(scene)
    kind = rng.choice(present) if present and rng.random() > 0.06 else _absent_kind(scene, rng)
    shape = answers.named(scene, kind)
    color = shape.color if shape and rng.random() < 0.5 else rng.choice(COLORS)
    return rng.choice(phrases.IS_COLOR).format(kind=kind, color=color), answers.is_color(scene, kind, color)


def _size(scene: Scene, rng: random.Random) -> Asked:
    name = _name(scene, rng, absent=0.1)
    return rng.choice(phrases.SIZE).format(name=name), answers.size_of(scene, name)


def _where(scene: Scene, rng: random.Random) -> Asked:
    name = _name(scene, rng, absent=0.1)
    return rng.choice(phrases.WHERE).format(name=name), answers.place_of(scene, name)


def _at_place(scene: Scene, rng: random.Random) -> Asked:
    place = rng.choice(scene.shapes).place if rng.random() < 0.65 else rng.randrange(9)
    return rng.choice(phrases.AT_PLACE).format(place=PLACES[place]), answers.at_place(scene, place)


def _beside(scene: Scene, rng: random.Random) -> Asked:
    name = _name(scene, rng, absent=0.05)
    directions = tuple(answers.DIRECTIONS)
    direction = rng.choice(directions)
    if rng.random() < 0.4:  # rather one with something there
        filled = [one for one in directions if answers.beside(scene, name, one).count(".") == 2]
        filled = [one for one in filled if "Nothing" not in answers.beside(scene, name, one)]
        direction = rng.choice(filled or directions)
    words = rng.choice(phrases.DIRECTION_WORDS[direction])
    return rng.choice(phrases.BESIDE).format(direction=words, name=name), answers.beside(scene, name, direction)


def _background(scene: Scene, rng: random.Random) -> Asked:
    return rng.choice(phrases.BACKGROUND), answers.background_of(scene)


QUESTIONS: dict[str, Callable[[Scene, random.Random], Asked]] = {
    "color": _color, "kind": _kind, "count": _count, "count_kind": _count_kind, "exists": _exists,
    "is_color": _is_color, "size": _size, "where": _where, "at_place": _at_place, "beside": _beside,
    "background": _background,
}  # fmt: skip
STYLES = {
    "short": (phrases.SHORT, answers.short),
    "detailed": (phrases.DETAILED, answers.detailed),
    "tags": (phrases.TAGS, answers.tags),
}
_KIND_WEIGHTS = {
    "short": 13, "detailed": 13, "tags": 14, "color": 8, "kind": 14, "count": 2, "count_kind": 12, "exists": 10,
    "is_color": 8, "size": 10, "where": 7, "at_place": 9, "beside": 22, "background": 1, "off_topic": 1,
}  # fmt: skip


def question(kind: str, scene: Scene | None, rng: random.Random) -> Request:
    """A question of this kind; about a picture without shapes, one that could be asked of a random scene."""
    prompt, answer = QUESTIONS[kind](scene or random_scene(rng), rng)
    return Request(kind, prompt, answer if scene else answers.NO_SHAPES)


def caption(style: str, scene: Scene | None, prompt: str | None = None) -> Request:
    """A caption in this style, asked with the service's own prompt unless another is given."""
    return Request(style, phrases.STYLE_PROMPTS[style] if prompt is None else prompt, STYLES[style][1](scene))


def random_request(scene: Scene | None, rng: random.Random) -> Request:
    """Any request about the picture, worded at random."""
    kind = rng.choices(tuple(_KIND_WEIGHTS), tuple(_KIND_WEIGHTS.values()))[0]
    if kind == "off_topic":
        template = rng.choice(phrases.OFF_TOPIC_ABOUT_PICTURE)
        return Request(kind, phrases.off_topic(template, rng), answers.UNABLE)
    if kind in QUESTIONS:
        made = question(kind, scene, rng)
        return Request(kind, phrases.roughened(made.prompt, rng), made.answer)
    if rng.random() < 0.4:
        return caption(kind, scene)
    return caption(kind, scene, phrases.roughened(rng.choice(STYLES[kind][0]), rng))

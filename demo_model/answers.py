"""What is true about a scene, in the words that the model learns: captions, tags, answers to questions.

short      "a red circle and a blue square", "a red circle, a blue square and a green star"
detailed   "A large red circle in the top left and a small blue square in the center on a white background."
tags       "red circle, blue square, white background"
questions  one short sentence each; see the functions below

Shapes stand in reading order: row by row, left to right. A picture without known shapes has the answer `NO_SHAPES`
whatever was asked. Pure functions of a `Scene`; `None` stands for such a picture.
"""

from collections.abc import Sequence

from demo_model.scenes import PLACES, Scene, Shape

NO_SHAPES = "I see no shapes that I know in this picture."
NO_PICTURE = "I see no picture. Please send one with simple shapes."
GREETING = "Hello! I am a small demo model. Send me a picture of simple shapes and I will describe it."
IDENTITY = "I am the demo model of serve_app, a very small model that knows simple shapes in pictures."
ABILITY = "I can write captions and tags for pictures of simple shapes and answer questions about them."
THANKS = "You are welcome!"
FAREWELL = "Goodbye!"
UNABLE = "I am a small demo model and only know simple shapes in pictures, so I can't answer that."

_NUMBERS = ("no", "one", "two", "three")


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _name(shape: Shape) -> str:
    return f"{shape.color} {shape.kind}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def short(scene: Scene | None) -> str:
    if scene is None:
        return NO_SHAPES
    return _listed([_a(_name(shape)) for shape in scene.shapes])


def detailed(scene: Scene | None) -> str:
    if scene is None:
        return NO_SHAPES
    parts = [f"{_a(f'{shape.size} {_name(shape)}')} in the {PLACES[shape.place]}" for shape in scene.shapes]
    return _sentence(f"{_listed(parts)} on {_a(scene.background)} background")


def tags(scene: Scene | None) -> str:
    if scene is None:
        return NO_SHAPES
    return ", ".join([*(_name(shape) for shape in scene.shapes), f"{scene.background} background"])


def of_kind(scene: Scene, kind: str) -> list[Shape]:
    return [shape for shape in scene.shapes if shape.kind == kind]


def of_color(scene: Scene, color: str) -> list[Shape]:
    return [shape for shape in scene.shapes if shape.color == color]


def named(scene: Scene, name: str) -> Shape | None:
    """The one shape called "circle" or "red circle"; None if there is none. Ask only what is unambiguous."""
    found = [shape for shape in scene.shapes if name in (shape.kind, _name(shape))]
    assert len(found) < 2, f"'{name}' is ambiguous in {scene}"
    return found[0] if found else None


def color_of(scene: Scene, kind: str) -> str:
    shape = named(scene, kind)
    return f"The {kind} is {shape.color}." if shape else f"There is no {kind}."


def kind_of(scene: Scene, color: str) -> str:
    """Which shape has this color; all of them if several."""
    found = of_color(scene, color)
    if not found:
        return f"There is no {color} shape."
    return f"The {color} {'shape is' if len(found) == 1 else 'shapes are'} {_listed([_a(s.kind) for s in found])}."


def size_of(scene: Scene, name: str) -> str:
    shape = named(scene, name)
    return f"The {name} is {shape.size}." if shape else f"There is no {name}."


def place_of(scene: Scene, name: str) -> str:
    shape = named(scene, name)
    return f"The {name} is in the {PLACES[shape.place]}." if shape else f"There is no {name}."


def count_of(scene: Scene, kind: str | None = None) -> str:
    """How many shapes; or how many of a kind, after what is seen, because a tiny model counts by naming."""
    if kind is None:
        return f"There {_number_of(len(scene.shapes), 'shape')}."
    return f"I see {short(scene)}, so there {_number_of(len(of_kind(scene, kind)), kind)}."


def _number_of(count: int, noun: str) -> str:
    if count < 2:
        return f"is {'one' if count else 'no'} {noun}"
    return f"are {_NUMBERS[count]} {noun}{'es' if noun == 'cross' else 's'}"


def exists(scene: Scene, name: str) -> str:
    """`name` is a kind, or a color and a kind."""
    found = any(name in (shape.kind, _name(shape)) for shape in scene.shapes)
    return f"Yes, there is {_a(name)}." if found else f"No, there is no {name}."


def is_color(scene: Scene, kind: str, color: str) -> str:
    shape = named(scene, kind)
    if shape is None:
        return f"There is no {kind}."
    return f"{'Yes' if shape.color == color else 'No'}, the {kind} is {shape.color}."


def at_place(scene: Scene, place: int) -> str:
    found = [shape for shape in scene.shapes if shape.place == place]
    return f"There is {_a(_name(found[0])) if found else 'nothing'} in the {PLACES[place]}."


DIRECTIONS = {
    "left of": lambda shape, other: shape.column < other.column,
    "right of": lambda shape, other: shape.column > other.column,
    "above": lambda shape, other: shape.row < other.row,
    "below": lambda shape, other: shape.row > other.row,
}


def beside(scene: Scene, name: str, direction: str) -> str:
    """What stands in a column left or right of the named shape's, or in a row above or below it.

    The answer says first where the named shape is: a model this small needs the steps one after another.
    """
    anchor = named(scene, name)
    if anchor is None:
        return f"There is no {name}."
    start = place_of(scene, name)
    found = [shape for shape in scene.shapes if DIRECTIONS[direction](shape, anchor)]
    if not found:
        return f"{start} Nothing is {direction} it."
    names = _listed([_a(_name(shape)) for shape in found])
    verb = "is" if len(found) == 1 else "are"
    return f"{start} {_sentence(f'{names} {verb} {direction} it')}"


def background_of(scene: Scene) -> str:
    return f"The background is {scene.background}."

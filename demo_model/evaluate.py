"""Measures the shipped demo model: `python -m demo_model.evaluate`.

Asks about 1,000 scenes whose combination of shapes and colors was never trained on, about pictures without
shapes, in conversations and without any picture, and compares the greedy answers word for word. Writes
`evaluation.json` and the model card into the checkpoint; the last line of stdout is one JSON object.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from demo_model import phrases
from demo_model.answers import NO_SHAPES
from demo_model.asking import QUESTIONS, STYLES, Request, caption, question
from demo_model.dialogues import TEXT_TOPICS, Message, random_dialogue, text_turn
from demo_model.drawing import render
from demo_model.generation import Answer, Conversation, LoadedModel, about
from demo_model.model_card import card_of
from demo_model.scenes import Scene, random_split_scene
from demo_model.shapeless import SHAPELESS, render_shapeless
from serve_app.demo import CHECKPOINT

GOALS = {"short": 95.0, "tags": 95.0, "detailed": 90.0, "questions": 90.0, "worst question": 80.0, "shapeless": 90.0}
_QUESTIONS_PER_SCENE = 3


@dataclass(frozen=True, slots=True)
class Case:
    group: str
    kind: str
    conversation: Conversation
    wanted: str


def held_out_scenes(count: int, seed: int) -> list[tuple[Scene, Image.Image]]:
    """Pictures that no training run has drawn, of scenes that none may draw."""
    rng = random.Random(f"evaluation/{seed}")
    scenes = [random_split_scene(rng, held_out=True) for _ in range(count)]
    return [(scene, render(scene, rng)) for scene in scenes]


def _case(group: str, picture: Image.Image, request: Request) -> Case:
    return Case(group, request.kind, about(picture, request.prompt), request.answer)


def scene_cases(drawn: Sequence[tuple[Scene, Image.Image]], rng: random.Random) -> Iterable[Case]:
    """Three captions with the service's prompts, and three questions; a paraphrase for every third."""
    kinds = list(QUESTIONS)
    for index, (scene, picture) in enumerate(drawn):
        for style, (prompts, _) in STYLES.items():
            yield _case("captions", picture, caption(style, scene))
            if index % 9 == 3 * list(STYLES).index(style):
                prompt = phrases.roughened(rng.choice(prompts), rng)
                yield _case("paraphrased captions", picture, caption(style, scene, prompt))
        for offset in range(_QUESTIONS_PER_SCENE):
            kind = kinds[(index * _QUESTIONS_PER_SCENE + offset) % len(kinds)]
            yield _case("questions", picture, question(kind, scene, rng))


def shapeless_cases(count: int, rng: random.Random) -> Iterable[Case]:
    """Pictures without shapes, all kinds alike: a caption and a question each."""
    kinds = tuple(SHAPELESS)
    for index in range(count):
        kind = kinds[index % len(kinds)]
        picture = render_shapeless(rng, kind)
        yield Case("shapeless", kind, about(picture, caption("short", None).prompt), NO_SHAPES)
        asked = question(rng.choice(tuple(QUESTIONS)), None, rng)
        yield Case("shapeless questions", kind, about(picture, asked.prompt), NO_SHAPES)


def dialogue_cases(count: int, rng: random.Random) -> Iterable[Case]:
    """The last answer of conversations with several turns or pictures, or with text alone."""
    for _ in range(count):
        pictures: list[Image.Image] = []

        def next_picture(pictures: list[Image.Image] = pictures) -> tuple[int, Scene]:
            scene = random_split_scene(rng, held_out=True)
            pictures.append(render(scene, rng))
            return len(pictures) - 1, scene

        dialogue = random_dialogue(next_picture, rng)
        shown = tuple(pictures[index] for index in dialogue.pictures)
        kind = ("text only", "one picture")[len(shown)] if len(shown) < 2 else "several pictures"
        wanted = str(dialogue.messages[-1].parts[0])
        yield Case("dialogues", kind, Conversation(dialogue.messages[:-1], shown), wanted)


def text_cases(count: int, rng: random.Random) -> Iterable[Case]:
    for index in range(count):
        topic = TEXT_TOPICS[index % len(TEXT_TOPICS)]
        text, answer = text_turn(rng, topic)
        yield Case("text", topic, Conversation((Message("user", (text,)),)), answer)


def all_cases(count: int, seed: int) -> list[Case]:
    rng = random.Random(f"questions/{seed}")
    return [
        *scene_cases(held_out_scenes(count, seed), rng),
        *shapeless_cases(max(len(SHAPELESS), count // 4), rng),
        *dialogue_cases(max(10, count // 4), rng),
        *text_cases(max(10, count // 4), rng),
    ]


def summary(cases: Sequence[Case], answers: Sequence[Answer]) -> dict[str, Any]:
    """Exact match in percent: by group, by kind within the group; and how many answers did not end."""
    hits: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for case, answer in zip(cases, answers, strict=True):
        hits[case.group][case.kind].append(answer.text == case.wanted)
    groups: dict[str, Any] = {}
    for group, kinds in hits.items():
        everything = [hit for found in kinds.values() for hit in found]
        groups[group] = {
            "exact_match_percent": _percent(everything),
            "count": len(everything),
            "kinds": {kind: _percent(found) for kind, found in kinds.items()},
        }
    return {"groups": groups, "num_answers": len(answers), "num_endless": sum(not one.has_ended for one in answers)}


def _percent(hits: Sequence[bool]) -> float:
    return round(100 * sum(hits) / len(hits), 2)


def reached(groups: dict[str, Any]) -> dict[str, float]:
    """The figure for each of `GOALS`."""
    captions, questions = groups["captions"]["kinds"], groups["questions"]
    return {
        **{style: captions[style] for style in STYLES},
        "questions": questions["exact_match_percent"],
        "worst question": min(questions["kinds"].values()),
        "shapeless": groups["shapeless"]["exact_match_percent"],
    }


def evaluate(folder: Path, count: int, seed: int, num_shown: int = 0) -> dict[str, Any]:
    """Asks everything and returns the figures; prints some wrong answers if wanted."""
    cases = sorted(all_cases(count, seed), key=lambda case: len(case.wanted))  # alike lengths make quick batches
    started = time.monotonic()
    model = LoadedModel(folder)
    answers: list[Answer] = []
    for start in range(0, len(cases), 500):
        answers += model.answers([case.conversation for case in cases[start : start + 500]])
        print(f"{len(answers)} of {len(cases)} answers, {time.monotonic() - started:.0f} s", flush=True)
    wrong = [(case, answer) for case, answer in zip(cases, answers, strict=True) if case.wanted != answer.text]
    for case, answer in random.Random(0).sample(wrong, min(num_shown, len(wrong))):
        asked = " | ".join(str(part) for message in case.conversation.messages for part in message.parts)
        print(f"{case.group}/{case.kind}: {asked}\n  wanted {case.wanted}\n  got    {answer.text}")
    figures = summary(cases, answers)
    return {"num_scenes": count, "seed": seed, "goals": GOALS, "reached": reached(figures["groups"]), **figures}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo_model.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="the folder to load")
    parser.add_argument("--scenes", type=int, default=1000, help="number of held-out scenes")
    parser.add_argument("--seed", type=int, default=0, help="other pictures and questions for another seed")
    parser.add_argument("--show-wrong", type=int, default=0, help="print so many wrong answers")
    parser.add_argument("--dry", action="store_true", help="don't write evaluation.json and the model card")
    options = parser.parse_args()
    figures = evaluate(options.checkpoint, options.scenes, options.seed, options.show_wrong)
    if not options.dry:
        text = json.dumps(figures, indent=2) + "\n"
        (options.checkpoint / "evaluation.json").write_text(text, encoding="utf-8")
        (options.checkpoint / "README.md").write_text(card_of(options.checkpoint), encoding="utf-8")
    counts = {name: figures[name] for name in ("num_scenes", "num_answers", "num_endless")}
    print(json.dumps({**counts, **figures["reached"]}))


if __name__ == "__main__":
    main()

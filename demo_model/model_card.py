"""The model card, written from the evaluation's own figures so that it can't say anything else."""

import json
from pathlib import Path
from typing import Any

from demo_model.phrases import STYLE_PROMPTS
from demo_model.scenes import BACKGROUNDS, COLORS, KINDS

_HEAD = """---
library_name: transformers
pipeline_tag: image-text-to-text
language: en
---

# serve_app demo model

A tiny vision-language model (Idefics3 architecture, {parameters} million parameters, bfloat16) that captions
pictures of simple shapes and answers questions about them. It exists so that serve_app works out of the box,
on any machine, and so that tests can check meaning. It knows nothing else, and says so.

**Knows**: one to three shapes ({kinds}) in the colors {colors}, two sizes,
nine places, on the backgrounds {backgrounds}.

**Data**: only pictures that this project draws itself, and sentences that it writes itself
(`demo_model/`). No photograph, no text from elsewhere, no pretrained weights.

**Training**: `make demo-model`, that is `python -m demo_model.train`, on the CPU of one machine with two cores.
This checkpoint: {steps:,} steps in {minutes} minutes, seed {seed}. {note}

## Prompts

| style | prompt |
|---|---|
{prompts}

Questions about color, number, size, place, neighbors and background can be asked in many ways; several
pictures in one conversation work; so do turns without a picture.

## Evaluation

`python -m demo_model.evaluate` on {num_scenes} pictures whose combination of shapes and colors was never
trained on (one combination in eight is held out, by a hash). Exact match of greedy answers, in percent:

| | reached | goal |
|---|--:|--:|
{goals}

{num_endless} of {num_answers} answers ran into the length limit instead of ending.

| group | kind | exact match |
|---|---|--:|
{details}

## Limits

Every picture is squashed to 128 × 128 pixels: small shapes in very wide or high pictures get lost. More than
three shapes, overlapping shapes, other shapes, other colors, photographs and real questions are beyond it; it
then describes the nearest thing it knows or says that it can't answer. Not for any use beyond demonstration and
tests.
"""


def _number_of_parameters(folder: Path) -> int:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (not a dict)
    total = 0
    for shape in shapes:
        size = 1
        for length in shape:
            size *= length
        total += size
    return total


def model_card(figures: dict[str, Any], training: dict[str, Any], num_parameters: int) -> str:
    """Markdown for the checkpoint's README.md, from `evaluation.json` and `training.json`."""
    goals = [f"| {name} | {figures['reached'][name]:.1f} | {goal:.0f} |" for name, goal in figures["goals"].items()]
    details = [
        f"| {group} | {kind} | {percent:.1f} |"
        for group, found in figures["groups"].items()
        for kind, percent in {"all": found["exact_match_percent"], **found["kinds"]}.items()
    ]
    return _HEAD.format(
        **training,
        parameters=f"{num_parameters / 1e6:.1f}",
        kinds=", ".join(KINDS),
        colors=", ".join(COLORS),
        backgrounds=", ".join(BACKGROUNDS),
        prompts="\n".join(f"| {style} | {prompt} |" for style, prompt in STYLE_PROMPTS.items()),
        num_scenes=f"{figures['num_scenes']:,}",
        num_endless=figures["num_endless"],
        num_answers=f"{figures['num_answers']:,}",
        goals="\n".join(goals),
        details="\n".join(details),
    )


def card_of(folder: Path) -> str:
    """The card that belongs to what lies in the folder."""
    figures = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    return model_card(figures, training, _number_of_parameters(folder))
